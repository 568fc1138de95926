"""``users``, ``threads`` and ``feedback``: what is stored is shown, exported and deleted completely, and nobody else's."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from datetime import date
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import MetaData, create_engine, insert, text

from chatkit.backends.selfhosted import user_data
from chatkit.backends.selfhosted.database.engine import make_engine, open_database
from chatkit.backends.selfhosted.database.tables import AttachmentRow, ImageRow, ItemRow, PausedRunRow, ThreadRow, UsageRow
from chatkit.backends.selfhosted.user_data import UserData
from chatkit.web.asgi import AsgiFlask
from tests.support.applications import MakeApp
from tests.support.chat_users import ChatUser, begin_conversation, chat, chat_user
from tests.support.redis_server import Redis

WORDS = "Purple elephants ✓"


def answer(text_: str) -> dict[str, Any]:
    return {"type": "assistant_message", "content": [{"type": "output_text", "text": text_, "annotations": []}]}


USAGE = {"requests": 2, "input_tokens": 30, "output_tokens": 4, "total_tokens": 34}


def question(text_: str) -> dict[str, Any]:
    return {"type": "user_message", "content": [{"type": "input_text", "text": text_}], "attachments": []}


@pytest.fixture
def app(make_app: MakeApp, database: str) -> AsgiFlask:
    return make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="")


def run(app: AsgiFlask, *arguments: str, answer: str | None = None) -> Result:
    result = app.test_cli_runner().invoke(args=list(arguments), input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def with_data(app: AsgiFlask, database: str, name: str) -> ChatUser:
    """A visitor with a session, a thread with feedback, and an attachment."""
    someone = chat_user(app, "anonymous", name)
    begin_conversation(someone, f"{WORDS} of {name}")
    rated = {"thread_id": someone.thread, "item_ids": [someone.item], "kind": "negative"}
    assert chat(someone, {"type": "items.feedback", "params": rated}).status_code == 200
    with create_engine(database).begin() as connection:
        attachment = {"id": f"atc_{name}", "user_id": someone.user, "thread_id": None, "data": json.dumps({"name": name})}
        connection.execute(insert(AttachmentRow), attachment)
        connection.execute(
            insert(UsageRow), {"user_id": someone.user, "day": date(2026, 11, 23), **USAGE, "agent": f"of {name}"}
        )
        paused = {"thread_id": someone.thread, "user_id": someone.user, "decisions": "{}", "state": f"{WORDS} of {name}"}
        connection.execute(insert(PausedRunRow), paused)
        image = {"id": f"img_{name}", "user_id": someone.user, "thread_id": someone.thread, "item_id": "msg_image"}
        connection.execute(insert(ImageRow), {**image, "media_type": "image/png", "data": f"Image of {name}".encode()})
    return someone


def fill(database: str, user: str, thread: str, *items: dict[str, Any], **columns: Any) -> None:
    """Store a thread as it is."""
    data = {"id": thread, "title": "A title", "created_at": "2026-11-01T00:00:00Z"}
    with open_database(database).begin() as connection:
        row = {"id": thread, "user_id": user, "used_at": 1_760_000_000, "data": json.dumps(data)}
        connection.execute(insert(ThreadRow), row)
        base = {"created_at": "2026-11-01T00:00:01Z", "thread_id": thread}
        rows = [
            {
                "thread_id": thread,
                "user_id": user,
                "id": f"msg_{number}",
                # Compact, as the service stores it.
                "data": json.dumps({"id": f"msg_{number}", **base, **item}, separators=(",", ":")),
                "feedback": None,
                **columns,
            }
            for number, item in enumerate(items)
        ]
        if rows:
            connection.execute(insert(ItemRow), rows)


def everything(database: str) -> str:
    """All that is in any table, as text."""
    engine = create_engine(database)
    metadata = MetaData()
    metadata.reflect(engine)
    assert {
        "chat_sessions",
        "chat_threads",
        "chat_items",
        "chat_attachments",
        "chat_imports",
        "chat_usage",
        "chat_paused_runs",
        "chat_images",
    } <= metadata.tables.keys()
    with engine.connect() as connection:
        return "\n".join(str(tuple(row)) for table in metadata.tables.values() for row in connection.execute(table.select()))


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
    assert exported["attachments"] == [{"name": "ada"}]
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


def items_of(someone: ChatUser) -> dict[str, Any]:
    return {"type": "items.list", "params": {"thread_id": someone.thread, "limit": 100, "order": "asc"}}


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
    ada, eve = (with_data(app, database, name) for name in ("ada", "eve"))
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


def test_what_redis_knows_about_a_user_expires(make_app: MakeApp, database: str) -> None:
    with Redis() as server:
        app = make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, OPENAI_API_KEY="", REDIS_URL=server.url)
        ada = with_data(app, database, "ada")
        assert run(app, "users", "delete", ada.user, "--yes").exit_code == 0
        import redis

        with redis.Redis.from_url(server.url) as client:
            keys = [key for key in client.keys("*") if ada.user.encode() in key]
            assert keys
            assert all(0 < client.ttl(key) <= 180 for key in keys), "a turn of 120 s, and a minute"
            assert not any(WORDS.encode() in key for key in client.keys("*"))


def test_more_than_one_batch_is_deleted(app: AsgiFlask, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(user_data.DELETE_BATCH + 5):
        fill(database, "user:a", f"thr_{number}", question("a"))
    fill(database, "user:b", "thr_b", question("b"))
    result = run(app, "users", "delete", "user:a", "--yes")
    assert "Deleted 0 sessions, 205 threads, 205 items, 0 ratings, 0 attachments, 0 usage records of user:a." in result.stdout
    assert "user:a" not in everything(database)
    assert "thr_b" in everything(database)


@pytest.mark.parametrize("reply", ["n\n", "\n", ""])
def test_deleting_asks_first(app: AsgiFlask, database: str, reply: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, "users", "delete", "user:a", answer=reply)
    assert result.exit_code == 1
    assert (
        "Delete 0 sessions, 1 thread, 1 item, 0 ratings, 0 attachments, 0 usage records of user:a? This can't be undone."
        in result.stderr
    )
    assert "thr_1" in everything(database)
    assert run(app, "users", "delete", "user:a", answer="y\n").exit_code == 0
    assert "thr_1" not in everything(database)


@pytest.mark.parametrize("command", [["users", "export"], ["users", "delete", "--yes"], ["threads", "list"]])
@pytest.mark.parametrize("user", ["a", "user:%", "user:A", "anonymous:a", ""])
def test_user_of_whom_nothing_is_stored(app: AsgiFlask, database: str, command: list[str], user: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, *command, user)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: Nothing is stored about {user!r}. Users begin with anonymous: or user:.\n"
    assert "thr_1" in everything(database)


def test_list_of_threads(app: AsgiFlask, database: str) -> None:
    fill(database, "user:a", "thr_2", question("a"), answer("b"))
    fill(database, "user:a", "thr_1")
    fill(database, "user:b", "thr_3", question("a"))
    result = run(app, "threads", "list", "user:a")
    assert result.stdout.splitlines() == [
        "thr_2  2026-11-01T00:00:00Z  2025-10-09T08:53:20Z      2  A title",
        "thr_1  2026-11-01T00:00:00Z  2025-10-09T08:53:20Z      0  A title",
    ]


def test_thread_is_shown(app: AsgiFlask, database: str) -> None:
    task = {"type": "task", "task": {"type": "custom", "title": "Searching"}}
    fill(database, "user:a", "thr_1", question("Hello\nthere"), task, answer("Hi"), feedback="positive")
    assert run(app, "threads", "show", "user:a", "thr_1").stdout.splitlines() == [
        "2026-11-01T00:00:01Z  user_message  (positive)",
        "    Hello",
        "    there",
        "2026-11-01T00:00:01Z  task  (positive)",
        '    {"task": {"type": "custom", "title": "Searching"}}',
        "2026-11-01T00:00:01Z  assistant_message  (positive)",
        "    Hi",
    ]


def test_what_users_wrote_does_not_control_the_terminal(app: AsgiFlask, database: str) -> None:
    fill(database, "user:a", "thr_1", question("\x1b[2J\r\x9b31m\u202egone"))
    with create_engine(database).begin() as connection:
        data = json.dumps({"title": "\x1b]0;x\x07\n\n", "created_at": "2026-11-01T00:00:00Z"})
        connection.execute(text("UPDATE chat_threads SET data = :data"), {"data": data})
    for command in (["list", "user:a"], ["show", "user:a", "thr_1"]):
        assert all(line.isprintable() for line in run(app, "threads", *command).stdout.splitlines())


def test_thread_of_another_user_is_not_shown(app: AsgiFlask, database: str) -> None:
    fill(database, "user:a", "thr_1", question("a"))
    result = run(app, "threads", "show", "user:b", "thr_1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: 'user:b' has no thread 'thr_1'.\n"


FORMULA = '=HYPERLINK("https://evil.test";"a, b")\nsecond line'


def rate(database: str) -> None:
    hidden = {"type": "hidden_context_item", "content": {"type": "user_message", "say": "not this"}}
    fill(database, "user:a", "thr_1", question("First?"), answer("Wrong"), question(FORMULA), hidden, answer("Right ✓"))
    fill(database, "user:b", "thr_2", answer("Unasked"), answer("Unrated"))
    verdicts = {("thr_1", "msg_1"): "negative", ("thr_1", "msg_4"): "positive", ("thr_2", "msg_0"): "positive"}
    with create_engine(database).begin() as connection:
        for (thread, item), verdict in verdicts.items():
            statement = text("UPDATE chat_items SET feedback = :verdict WHERE thread_id = :thread AND id = :item")
            connection.execute(statement, {"verdict": verdict, "thread": thread, "item": item})


def rated(*rows: tuple[str, str, str, str, str, str]) -> list[dict[str, str]]:
    names = ("verdict", "question", "answer", "user", "thread_id", "item_id")
    return [{"created_at": "2026-11-01T00:00:01Z", **dict(zip(names, row, strict=True))} for row in rows]


def test_feedback_as_json_lines(app: AsgiFlask, database: str) -> None:
    rate(database)
    result = run(app, "feedback", "export", "--format", "jsonl")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == rated(
        ("negative", "First?", "Wrong", "user:a", "thr_1", "msg_1"),
        ("positive", FORMULA, "Right ✓", "user:a", "thr_1", "msg_4"),
        ("positive", "", "Unasked", "user:b", "thr_2", "msg_0"),
    )


def test_feedback_as_csv_runs_nothing_in_a_spreadsheet(app: AsgiFlask, database: str) -> None:
    rate(database)
    result = run(app, "feedback", "export")
    assert list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline=""))) == rated(
        ("negative", "First?", "Wrong", "user:a", "thr_1", "msg_1"),
        ("positive", f"'{FORMULA}", "Right ✓", "user:a", "thr_1", "msg_4"),
        ("positive", "", "Unasked", "user:b", "thr_2", "msg_0"),
    )
    assert "negative,First?,Wrong" in result.stdout


def test_without_feedback(app: AsgiFlask, database: str) -> None:
    assert run(app, "feedback", "export").stdout.splitlines() == ["created_at,verdict,question,answer,user,thread_id,item_id"]
    assert run(app, "feedback", "export", "--format", "jsonl").stdout == ""


@pytest.mark.parametrize("command", [["users", "export", "user:a"], ["threads", "list", "user:a"], ["feedback", "export"]])
def test_database_that_fails(make_app: MakeApp, tmp_path: Any, command: list[str]) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    app = make_app(DATABASE_URL=address)
    open_database(address)
    with create_engine(address).begin() as connection:
        connection.execute(text("DROP TABLE chat_items"))
    result = run(app, *command)
    assert result.exit_code == 1
    assert result.stderr == "Error: DATABASE_URL: the tables are missing.\n"
