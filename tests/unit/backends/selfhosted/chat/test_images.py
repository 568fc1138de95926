"""Generated images: stored apart from their items, within limits."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from chatkit.store import NotFoundError
from itsdangerous import URLSafeSerializer
from sqlalchemy import Engine, create_engine, insert, text

from chatkit.backends.selfhosted.chat import images
from chatkit.backends.selfhosted.chat.history import load_history
from chatkit.backends.selfhosted.chat.images import MAX_IMAGE_BYTES, URL_SECONDS, ImageRefusedError, image_urls
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.tables import ItemRow
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.identity.user import User
from tests.support.applications import MakeApp, Start, served
from tests.support.chat import Caller, errors, on_screen, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.images import DRAWING, PNG, data_url, drawn, encoded, get, url_of
from tests.support.responses_api import asked, draws, says, streaming
from tests.support.store import ADA, EVE, IMAGE_URLS, new_thread, of, question, run


def fetched(store: SqlStore, url: str) -> images.Image:
    """The image that the endpoint finds for ``url``."""
    parts = urlsplit(url)
    return store.open_image(parts.path.rpartition("/")[2], parts.query.removeprefix("token="), lambda _size: None)


def stored(engine: Engine) -> list[tuple[str, str]]:
    """The user and the item of each stored image."""
    with engine.connect() as connection:
        return [
            (row[0], row[1]) for row in connection.execute(text("SELECT user_id, item_id FROM chat_images ORDER BY item_id"))
        ]


class TestStore:
    def test_item_refers_to_its_image(self, store: SqlStore, engine: Engine) -> None:
        thread_id, data = new_thread(store), PNG + bytes(4_000_000)
        item = drawn(thread_id, data_url(data))
        run(store.add_thread_item(thread_id, item, ADA))
        with engine.connect() as connection:
            assert len(connection.execute(text("SELECT data FROM chat_items")).scalar_one()) < 300
        loaded = [
            run(store.load_item(thread_id, item.id, ADA)),
            run(store.load_thread_items(thread_id, None, 9, "asc", ADA)).data[0],
        ]
        for one in (item, *loaded):
            assert fetched(store, url_of(one)) == images.Image("image/png", data)
            assert one == item

    @pytest.mark.parametrize(
        ("data", "declared", "media_type"),
        [
            (PNG, "image/webp", "image/png"),
            (b"\xff\xd8\xff\xe0", "image/png", "image/jpeg"),
            (b"RIFF\n\x00\x00\x00WEBPVP8 ", "image/png", "image/webp"),
            (b"GIF89a", "image/png", "image/gif"),
        ],
    )
    def test_media_type(self, store: SqlStore, data: bytes, declared: str, media_type: str) -> None:
        thread_id = new_thread(store)
        item = drawn(thread_id, data_url(data, declared))
        run(store.add_thread_item(thread_id, item, ADA))
        assert fetched(store, url_of(item)) == images.Image(media_type, data)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            (data_url(b"<svg/>", "image/svg+xml"), "unknown format"),
            (data_url(b"<svg/>"), "unknown format"),  # so OpenAI's package declares it
            (data_url(b"<html>", "text/html"), "unknown format"),
            ("data:image/png;base64,Zm9v!", "damaged"),
            ("data:image/png;base64,Zm9vé", "damaged"),
            ("data:image/png,%89PNG", "damaged"),
            (data_url(PNG + bytes(MAX_IMAGE_BYTES - len(PNG) + 1)), "too large"),
        ],
        ids=["svg", "svg declared as png", "html", "not base64", "not ascii", "percent-encoded", "too large"],
    )
    def test_refused_images(self, store: SqlStore, engine: Engine, url: str, message: str) -> None:
        thread_id = new_thread(store)
        with pytest.raises(ImageRefusedError) as caught:
            run(store.add_thread_item(thread_id, drawn(thread_id, url), ADA))
        assert message in caught.value.message
        assert (stored(engine), run(store.load_thread_items(thread_id, None, 9, "asc", ADA)).data) == ([], [])

    def test_largest_image(self, store: SqlStore) -> None:
        thread_id = new_thread(store)
        item = drawn(thread_id, data_url(PNG + bytes(MAX_IMAGE_BYTES - len(PNG))))
        run(store.add_thread_item(thread_id, item, ADA))
        assert len(fetched(store, url_of(item)).data) == MAX_IMAGE_BYTES

    def test_number_per_thread(self, store: SqlStore, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("chatkit.backends.selfhosted.chat.store.MAX_IMAGES", 3)
        thread_id, other = new_thread(store), new_thread(store)
        for number in range(3):
            run(store.add_thread_item(thread_id, drawn(thread_id, name=f"msg_{number}"), ADA))
        with pytest.raises(ImageRefusedError, match="begin a new one"):
            run(store.add_thread_item(thread_id, drawn(thread_id, name="msg_3"), ADA))
        run(store.add_thread_item(thread_id, drawn(thread_id, name="msg_2"), ADA))
        run(store.add_thread_item(other, drawn(other, name="msg_4"), ADA))
        assert [item for _, item in stored(engine)] == ["msg_0", "msg_1", "msg_2", "msg_4"]

    def test_saved_again(self, store: SqlStore, engine: Engine) -> None:
        """With the URL the image stays, with other data it is replaced, and with a URL from elsewhere it is deleted."""
        thread_id = new_thread(store)
        item = drawn(thread_id)
        run(store.add_thread_item(thread_id, item, ADA))
        first = url_of(item)
        run(store.save_item(thread_id, run(store.load_item(thread_id, item.id, ADA)), ADA))
        assert url_of(run(store.load_item(thread_id, item.id, ADA))) == first
        other = drawn(thread_id, data_url(PNG + b"2"))
        run(store.save_item(thread_id, other, ADA))
        assert fetched(store, url_of(other)).data == PNG + b"2"
        with pytest.raises(NotFoundError):
            fetched(store, first)
        run(store.save_item(thread_id, drawn(thread_id, "https://example.com/a.png"), ADA))
        assert url_of(run(store.load_item(thread_id, item.id, ADA))) == "https://example.com/a.png"
        assert stored(engine) == []

    def test_saved_again_with_an_expired_url(self, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        thread_id = new_thread(store)
        item = drawn(thread_id)
        run(store.add_thread_item(thread_id, item, ADA))
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + 3 * URL_SECONDS)
        run(store.save_item(thread_id, item, ADA))
        assert fetched(store, url_of(run(store.load_item(thread_id, item.id, ADA)))).data == PNG

    def test_image_is_deleted_with_its_item(self, store: SqlStore, engine: Engine) -> None:
        thread_id, other = new_thread(store), new_thread(store)
        run(store.add_thread_item(thread_id, drawn(thread_id, name="msg_0"), ADA))
        run(store.add_thread_item(thread_id, question(thread_id, "msg_1"), ADA))
        for number in (2, 3):
            run(store.add_thread_item(thread_id, drawn(thread_id, name=f"msg_{number}"), ADA))
        run(store.add_thread_item(other, drawn(other, name="msg_3"), ADA))
        run(store.delete_thread_item(thread_id, "msg_2", ADA))
        assert [item for _, item in stored(engine)] == ["msg_0", "msg_3", "msg_3"]
        run(store.delete_after(thread_id, "msg_1", ADA))
        assert [item for _, item in stored(engine)] == ["msg_0", "msg_3"]
        assert len(run(store.load_thread_items(other, None, 9, "asc", ADA)).data) == 1

    def test_image_is_deleted_with_its_thread(self, store: SqlStore, engine: Engine) -> None:
        thread_id, other = new_thread(store), new_thread(store)
        for thread, name in ((thread_id, "msg_1"), (other, "msg_2")):
            run(store.add_thread_item(thread, drawn(thread, name=name), ADA))
        run(store.delete_thread(thread_id, ADA))
        assert [item for _, item in stored(engine)] == ["msg_2"]

    def test_image_is_its_users(self, store: SqlStore, engine: Engine) -> None:
        """Eve knows all names and the URL."""
        thread_id = new_thread(store)
        item = drawn(thread_id)
        run(store.add_thread_item(thread_id, item, ADA))
        assert run(store.load_image(url_of(item), ADA)) == data_url(PNG)
        assert run(store.load_image(url_of(item), EVE)) == ""
        own = new_thread(store, EVE)
        run(store.add_thread_item(own, drawn(own, url_of(item)), EVE))
        with pytest.raises(NotFoundError):
            fetched(store, url_of(run(store.load_item(own, item.id, EVE))))
        for attempt in (
            store.save_item(thread_id, drawn(thread_id, data_url(PNG + b"2")), EVE),
            store.delete_after(thread_id, item.id, EVE),
            store.load_item(thread_id, item.id, EVE),
        ):
            with pytest.raises(NotFoundError):
                run(attempt)
        run(store.delete_thread_item(thread_id, item.id, EVE))
        assert stored(engine) == [(ADA.user, item.id)]
        assert fetched(store, url_of(item)).data == PNG

    def test_image_goes_with_the_conversation(self, store: SqlStore, engine: Engine) -> None:
        """The visitor's URL shows nothing any more, because someone else may have it."""
        thread_id = new_thread(store)
        item = drawn(thread_id)
        run(store.add_thread_item(thread_id, item, ADA))
        user = User("user", "ada")
        SessionStore(engine, ttl=600).transfer_conversations(User("anonymous", "ada"), user)
        assert stored(engine) == [(user.id, item.id)]
        assert fetched(store, url_of(run(store.load_item(thread_id, item.id, of(user.id))))).data == PNG
        with pytest.raises(NotFoundError):
            fetched(store, url_of(item))

    def test_image_that_is_in_its_item_stays_there(self, store: SqlStore, engine: Engine) -> None:
        """As earlier versions stored it."""
        thread_id = new_thread(store)
        item = drawn(thread_id)
        with engine.begin() as connection:
            row = {"thread_id": thread_id, "user_id": ADA.user, "id": item.id, "data": item.model_dump_json()}
            connection.execute(insert(ItemRow), row)
        assert url_of(run(store.load_item(thread_id, item.id, ADA))) == data_url(PNG)
        (given,) = run(load_history(store, thread_id, ADA))
        assert url_of(given) == data_url(PNG)


class TestUrls:
    def test_url_names_the_image_but_not_the_user(self) -> None:
        url = IMAGE_URLS.make("https://api.example.com/", "img_1", "user:ada@example.com")
        assert url.startswith("https://api.example.com/api/chatkit/images/img_1?token=")
        _, payload = URLSafeSerializer("a guessed key").loads_unsafe(url.partition("token=")[2])
        assert payload[0] == "img_1"
        assert "ada" not in str(payload)

    def test_url_expires_after_12_to_24_hours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [1_800_000_000.0 // URL_SECONDS * URL_SECONDS]
        monkeypatch.setattr("time.time", lambda: clock[0])
        first = IMAGE_URLS.make("/", "img_1", ADA.user)
        clock[0] += URL_SECONDS - 1
        assert IMAGE_URLS.make("/", "img_1", ADA.user) == first, "browsers cache it"
        token = first.partition("token=")[2]
        clock[0] += URL_SECONDS
        assert IMAGE_URLS.read(token, "img_1")
        clock[0] += 1
        assert IMAGE_URLS.read(token, "img_1") is None

    def test_rotated_key(self) -> None:
        token = IMAGE_URLS.make("/", "img_1", ADA.user).partition("token=")[2]
        former = "a key that signs the URLs of images"
        rotated = image_urls("another key", [former])
        assert rotated.read(token, "img_1") == IMAGE_URLS.read(token, "img_1") is not None
        assert image_urls("another key").read(token, "img_1") is None
        assert IMAGE_URLS.read(rotated.make("/", "img_1", ADA.user).partition("token=")[2], "img_1") is None, "a new signature"


@pytest.mark.parametrize("agent", ["simple", "run_workflow", "tests.support.servers_under_test:Plain"])
def test_refused_image_is_removed_from_the_page(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    large = "A" * (MAX_IMAGE_BYTES // 3 * 4 + 8)
    fake_openai.behaviour = streaming([*draws(large, "iVBO"), *says("Here it is")])
    thread_id, events = caller.create("Draw")
    assert errors(events) == [("custom", "The image is too large to be kept.", False)]
    assert set(on_screen(events)) == {item.id for item in caller.items(thread_id).data}


def test_image_that_a_guardrail_stops_is_not_kept(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start("able")
    fake_openai.behaviour = streaming([*draws(encoded(PNG)), *says("the secret word")])
    _, events = caller.create("Draw")
    # On a busy machine, the SDK raises before it has passed on the image.
    for url in [url_of(e.item) for e in events if e.type == "thread.item.done" and e.item.type == "generated_image"]:
        assert get(url).status_code == 404
    assert stored(create_engine(f"sqlite:///{tmp_path}/chatkit.db")) == []


def test_image_that_is_cancelled_is_not_kept(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start("simple", CHATKIT_TURN_SECONDS="1")
    fake_openai.behaviour = streaming([*draws(encoded(PNG), "iVBO", "iVBORw0K")[:-2], 5.0])
    thread_id, events = caller.create("Draw")
    assert len([e for e in events if e.type == "thread.item.updated"]) == 2
    assert [item.type for item in caller.items(thread_id).data] == ["user_message"]
    assert stored(create_engine(f"sqlite:///{tmp_path}/chatkit.db")) == []


def test_own_server_leaves_out_what_exceeds_openais_limit(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatkit.backends.selfhosted.chat.history.MAX_FILE_BYTES", 50)
    caller = start("tests.support.servers_under_test:Plain")
    fake_openai.behaviour = streaming([*draws(encoded(PNG + b"1")), *says("One")], [*draws(encoded(PNG + b"2")), *says("Two")])
    thread_id, _ = caller.create("Draw")
    caller.say(thread_id, "Again")
    assert texts(caller.say(thread_id, "Which?")) == ["Two"]
    given = fake_openai.received[-1].body
    assert [words for _, words in asked(given)] == [
        "Draw", "One", "Again", "The following image was generated by the agent.", "Two", "Which?",
    ]  # fmt: skip
    assert data_url(PNG + b"2") in json.dumps(given)


def test_servers_in_one_process_read_their_own_images(make_app: MakeApp, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    selfhosted = {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_AGENT": "tests.support.servers_under_test:Plain"}
    fake_openai.behaviour = streaming(DRAWING)
    with served(make_app(**selfhosted)) as address:
        make_app(**selfhosted, DATABASE_URL=f"sqlite:///{tmp_path}/other.db")
        caller = Caller(address)
        thread_id, _ = caller.create("Draw")
        caller.say(thread_id, "What is it?")
    assert data_url(PNG) in json.dumps(fake_openai.received[1].body)
