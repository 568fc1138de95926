"""The signed URLs of images: who gets one, how long, and how often."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import images_blueprint
from chatkit.backends.selfhosted.chat.images import URL_SECONDS, image_urls
from tests.support.applications import MakeApp, Start, served
from tests.support.chat import Caller
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.images import DRAWING, PNG, encoded, get, image_url, url_of
from tests.support.leaks import Recorder
from tests.support.responses_api import draws, says, streaming
from tests.support.service import SECRET_KEY
from tests.support.waiting import wait_for

CDN = "https://cdn.platform.openai.com"


@pytest.fixture
def caller(start: Start, fake_openai: FakeOpenAI) -> Caller:
    fake_openai.behaviour = streaming(DRAWING)
    return start("simple")


class TestEndpoint:
    def test_response(self, caller: Caller, recorder: Recorder) -> None:
        thread_id, _ = caller.create("Draw")
        url = image_url(caller, thread_id)
        assert url.startswith(f"{caller.url}/api/chatkit/images/img_")
        path = urlsplit(url).path
        response = get(url)
        assert (response.status_code, response.content) == (200, PNG)
        names = (*images_blueprint.HEADERS, "Content-Type")
        assert {name: response.headers[name] for name in names} == {
            "Cache-Control": "private, max-age=43200, immutable",
            "Access-Control-Allow-Origin": "*",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Content-Disposition": "inline",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Content-Type-Options": "nosniff",
            "Content-Type": "image/png",
        }
        assert "Set-Cookie" not in response.headers
        wait_for(lambda: any("chatkit.access" in line and path in line for line in recorder.lines))
        (line,) = [line for line in recorder.lines if "chatkit.access" in line and path in line]
        assert "token" not in line, "the log would give the image to its readers"

    @pytest.mark.parametrize("origin", [CDN, "http://localhost:3000"])
    def test_frame_of_another_origin_may_read_it(self, caller: Caller, origin: str) -> None:
        thread_id, _ = caller.create("Draw")
        response = get(image_url(caller, thread_id), Origin=origin)
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert "Access-Control-Allow-Credentials" not in response.headers

    def test_unknown_foreign_expired_and_forged_urls_are_alike(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        thread_id, _ = caller.create("Draw")
        other_thread, _ = caller.create("Draw")
        url, other = image_url(caller, thread_id), image_url(caller, other_thread)
        path, token = url.split("?token=")
        image_id = path.rpartition("/")[2]
        body, _, signature = token.rpartition(".")
        urls = image_urls("a guessed key")
        real = image_urls(SECRET_KEY)
        wrong = [
            path,
            f"{path}?token=",
            f"{path}?token={token[:-1]}",
            f"{path}?token={body}.{signature[::-1]}",
            f"{path}?token={body}",
            f"{path}?token={other.partition('token=')[2]}",
            f"{path}?token=%00",
            f"{path}%00?token={token}",
            f"{caller.url}/api/chatkit/images/img_unknown?token={token}",
            urls.make(caller.url, image_id, "anonymous:ada"),
            real.make(caller.url, image_id, "anonymous:eve"),
        ]
        caller.post("threads.delete", thread_id=other_thread)
        seen = {(get(one).status_code, get(one).json()["code"]) for one in [*wrong, other]}
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + 2 * URL_SECONDS)
        seen.add((get(url).status_code, get(url).json()["code"]))
        monkeypatch.undo()
        assert seen == {(404, "not_found")}
        assert get(url).status_code == 200

    def test_page_of_history_is_small(self, start: Start, fake_openai: FakeOpenAI, database: str) -> None:
        caller = start("simple", DATABASE_URL=database)
        data = PNG + bytes(4_000_000)
        fake_openai.behaviour = streaming([*draws(encoded(data)), *says("Here it is")])
        thread_id, _ = caller.create("Draw")
        answer = caller.post("items.list", thread_id=thread_id)
        assert len(answer.content) < 2000
        assert get(image_url(caller, thread_id)).content == data
        assert len(caller.post("threads.get_by_id", thread_id=thread_id).content) < 2000

    def test_retry_replaces_the_image(self, caller: Caller) -> None:
        thread_id, _ = caller.create("Draw")
        first = image_url(caller, thread_id)
        question_id = caller.items(thread_id, order="asc").data[0].id
        list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=question_id))
        assert get(first).status_code == 404
        assert get(image_url(caller, thread_id)).status_code == 200

    def test_url_is_valid_after_the_key_was_rotated(self, make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
        fake_openai.behaviour = streaming(DRAWING)
        selfhosted = {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_AGENT": "tests.support.agents_under_test:simple"}
        old, new = ("an-old-key-of-the-tests-0123456789abcdef", "a-new-key-of-the-tests-0123456789abcdef")
        with served(make_app(**selfhosted, SECRET_KEY=old)) as address:
            caller = Caller(address)
            thread_id, _ = caller.create("Draw")
            path = image_url(caller, thread_id).removeprefix(address)
        with served(make_app(**selfhosted, SECRET_KEY=new, SECRET_KEY_FALLBACKS=old)) as address:
            assert get(address + path).status_code == 200
        with served(make_app(**selfhosted, SECRET_KEY=new)) as address:
            assert get(address + path).status_code == 404

    def test_url_has_the_address_that_the_proxy_reports(self, start: Start, fake_openai: FakeOpenAI) -> None:
        fake_openai.behaviour = streaming(DRAWING)
        caller = start("simple", PROXY_HOPS="1")
        caller.http.headers.update({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.com"})
        thread_id, events = caller.create("Draw")
        (streamed,) = [url_of(e.item) for e in events if e.type == "thread.item.done" and e.item.type == "generated_image"]
        assert streamed == image_url(caller, thread_id)
        assert streamed.startswith("https://api.example.com/api/chatkit/images/img_")

    def test_image_stays_after_signing_in(self, start: Start, fake_openai: FakeOpenAI) -> None:
        fake_openai.behaviour = streaming(DRAWING)
        caller = start("simple", AUTH_JWT_SECRET=SECRET, AUTH_KEEP_CONVERSATIONS="true")
        thread_id, _ = caller.create("Draw")
        before = image_url(caller, thread_id)
        caller.token = shared()
        caller.refresh()
        assert get(before).status_code == 404
        assert get(image_url(caller, thread_id)).content == PNG

    def test_requests_of_an_address_are_limited(self, start: Start, fake_openai: FakeOpenAI) -> None:
        fake_openai.behaviour = streaming(DRAWING)
        caller = start("simple", RATE_LIMIT="1000000,1")  # 100 requests per minute
        thread_id, _ = caller.create("Draw")
        url = image_url(caller, thread_id)
        codes = [get(url).status_code for _ in range(101)]
        assert (codes[0], codes[-1]) == (200, 429)

    @pytest.mark.parametrize(("too_few", "codes"), [(0, [200, 200]), (1, [429, 429])])
    def test_bytes_in_memory_are_limited(
        self, start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, too_few: int, codes: list[int]
    ) -> None:
        """An address has a quarter of them. They are released when the client has read them."""
        monkeypatch.setattr(images_blueprint, "MAX_SENDING_BYTES", 4 * len(PNG) - too_few)
        fake_openai.behaviour = streaming(DRAWING)
        caller = start("simple")
        thread_id, _ = caller.create("Draw")
        url = image_url(caller, thread_id)
        assert [get(url).status_code for _ in range(2)] == codes

    def test_database_that_fails(self, caller: Caller, tmp_path: Any) -> None:
        thread_id, _ = caller.create("Draw")
        url = image_url(caller, thread_id)
        with create_engine(f"sqlite:///{tmp_path}/chatkit.db").begin() as connection:
            connection.execute(text("ALTER TABLE chat_images RENAME TO gone"))
        response = get(url)
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
