"""What is stored about a user is exported and deleted completely, and nobody else's."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from typing import Any

import pytest
from sqlalchemy import create_engine, insert

from chatkit.backends.selfhosted import user_data
from chatkit.backends.selfhosted.chat.runs import POLL_SECONDS
from chatkit.backends.selfhosted.database.engine import make_engine
from chatkit.backends.selfhosted.database.tables import ImageRow
from chatkit.backends.selfhosted.user_data import UserData
from chatkit.web.asgi import AsgiFlask
from tests.support.chat_users import chat
from tests.support.commands import run
from tests.support.stored_data import FILE, USAGE, WORDS, answer, everything, fill, items_of, question, with_data


def test_export_has_everything_of_the_user(app: AsgiFlask, database: str) -> None:
    ada, eve = (with_data(app, database, name) for name in ("ada", "eve"))
    result = run(app, "users", "export", ada.user)
    assert result.exit_code == 0
    exported = json.loads(result.stdout)
    assert exported["user"] == ada.user
    (session,) = exported["sessions"]
    assert session["id"] == ada.session_id
    assert ada.secret not in result.stdout
    (thread,) = exported["threads"]
    assert thread["id"] == ada.thread
    assert f"{WORDS} of ada" in thread["items"][0]["content"][0]["text"]
    assert {item["id"]: item.get("feedback") for item in thread["items"]}[ada.item] == "negative"
    assert exported["paused_runs"] == [{"thread_id": ada.thread, "decisions": "{}", "state": f"{WORDS} of ada"}]
    assert exported["active_runs"] == [{"id": "run_ada", "thread_id": ada.thread, "started_at": "2025-10-09T08:53:20Z"}]
    content = f"data:text/plain;base64,{base64.b64encode(b'File of ada').decode()}"
    assert exported["attachments"] == [{**FILE, "name": "ada", "content": content}]
    assert exported["usage"] == [{"day": "2026-11-23", **USAGE, "agent": "of ada"}]
    shown = {item["id"] for item in chat(ada, items_of(ada)).get_json()["data"]}
    assert shown <= {item["id"] for item in thread["items"]}
    assert not any(word in result.output for word in (eve.user, eve.thread, "of eve", "atc_eve"))


def test_export_has_the_images(app: AsgiFlask, database: str) -> None:
    """A stored item has a reference. One that an earlier version stored has the image itself."""
    urls = ["chatkit-image:img_1", "chatkit-image:img_2", "data:image/png;base64,AAAA"]
    drawn = [{"type": "generated_image", "image": {"id": "ig_1", "url": url}} for url in urls]
    fill(database, "user:a", "thr_1", question("Draw"), *drawn)
    with create_engine(database).begin() as connection:
        image = {"id": "img_1", "user_id": "user:a", "thread_id": "thr_1", "item_id": "msg_1", "media_type": "image/webp"}
        connection.execute(insert(ImageRow), {**image, "data": b"an image"})
    exported = json.loads(run(app, "users", "export", "user:a").stdout)
    shown = [item["image"]["url"] for item in exported["threads"][0]["items"][1:]]
    assert shown == ["data:image/webp;base64,YW4gaW1hZ2U=", urls[1], urls[2]]


def test_export_of_any_size_is_valid(app: AsgiFlask, database: str) -> None:
    for number in range(30):
        fill(database, "user:a", f"thr_{number}", *(question(f"{number}.{n} \0\n\u2028") for n in range(number)))
    exported = json.loads(run(app, "users", "export", "user:a").stdout)
    assert [thread["id"] for thread in exported["threads"]] == [f"thr_{number}" for number in range(30)]
    assert [len(thread["items"]) for thread in exported["threads"]] == list(range(30))
    assert exported["threads"][29]["items"][28]["content"][0]["text"] == "29.28 \0\n\u2028"
    assert (exported["sessions"], exported["attachments"], exported["usage"]) == ([], [], [])


def test_export_holds_little_in_memory(app: AsgiFlask, database: str) -> None:
    fill(database, "user:a", "thr_1", *(answer("x" * 500_000) for _ in range(100)))
    tracemalloc.start()
    with make_engine(database).connect() as connection:
        size = sum(len(piece) for piece, _ in UserData(connection).export("user:a"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 50_000_000
    assert peak < 30_000_000


def test_deleted_user_leaves_nothing(app: AsgiFlask, database: str) -> None:
    ada, eve, _ = (with_data(app, database, name) for name in ("ada", "eve", "bob"))
    before = everything(database)
    assert all(word in before for word in (*ada.ids(), "of ada", "atc_ada"))
    exported = run(app, "users", "export", eve.user).stdout

    result = run(app, "users", "delete", ada.user, "--yes")
    assert result.exit_code == 0
    assert result.stdout.startswith("Deleted 1 session, 1 thread, ")
    assert f"1 rating, 1 attachment, 1 usage record of {ada.user}." in result.stdout
    after = everything(database)
    assert not [word for word in (*ada.ids(), "of ada", "atc_ada") if word in after]
    assert json.loads(exported)["threads"] == json.loads(run(app, "users", "export", eve.user).stdout)["threads"]
    assert chat(ada, items_of(ada)).status_code == 401, "the session has ended"
    assert chat(eve, items_of(eve)).status_code == 200


def test_more_than_one_batch_is_deleted(app: AsgiFlask, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(user_data.DELETE_BATCH + 5):
        fill(database, "user:a", f"thr_{number}", question("a"))
    fill(database, "user:b", "thr_b", question("b"))
    result = run(app, "users", "delete", "user:a", "--yes")
    assert "Deleted 0 sessions, 205 threads, 205 items, 0 ratings, 0 attachments, 0 usage records of user:a." in result.stdout
    assert "user:a" not in everything(database)
    assert "thr_b" in everything(database)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_items_and_images_are_deleted_before_their_thread(
    app: AsgiFlask, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that deleted a thread with all its items would lock out all writers of SQLite for long."""
    ada = with_data(app, database, "ada")
    fill(database, ada.user, "thr_long", *(question("a") for _ in range(user_data.DELETE_BATCH + 5)))
    with create_engine(database).begin() as connection:
        for table in ("chat_items", "chat_images"):
            condition = f"EXISTS (SELECT 1 FROM {table} WHERE thread_id = OLD.id)"
            trigger = f"CREATE TRIGGER no_{table} BEFORE DELETE ON chat_threads WHEN {condition}"
            connection.exec_driver_sql(f"{trigger} BEGIN SELECT RAISE(ABORT, 'not empty'); END")
    deleted: list[int] = []
    delete = UserData._delete

    def count(*args: Any) -> int:
        deleted.append(delete(*args))
        return deleted[-1]

    monkeypatch.setattr(UserData, "_delete", count)
    assert run(app, "users", "delete", ada.user, "--yes").exit_code == 0
    assert max(deleted) > user_data.DELETE_BATCH
    assert ada.user not in everything(database)


def test_what_an_active_run_stores_at_its_end_is_deleted(
    app: AsgiFlask, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = with_data(app, database, "ada")
    sleep = time.sleep

    def end_run(seconds: float) -> None:
        if seconds == user_data.RUN_END_SECONDS:
            fill(database, ada.user, "thr_late", question("late words"))
        sleep(0)

    monkeypatch.setattr(time, "sleep", end_run)
    assert run(app, "users", "delete", ada.user, "--yes").exit_code == 0
    assert not [word for word in (ada.user, "run_ada", "thr_late", "late words") if word in everything(database)]
    assert 2 * POLL_SECONDS <= user_data.RUN_END_SECONDS
