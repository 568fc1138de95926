"""``threads``: the conversations of one user."""

from __future__ import annotations

import json

from sqlalchemy import create_engine, text

from chatkit.web.asgi import AsgiFlask
from tests.support.commands import run
from tests.support.stored_data import answer, fill, question


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


def test_text_of_users_does_not_control_the_terminal(app: AsgiFlask, database: str) -> None:
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
