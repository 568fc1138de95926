"""``import-hosted``: from OpenAI's API over HTTP to what the chat shows, on both databases and with both backends."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import create_engine, text

from chatkit import settings
from chatkit.backends.hosted import threads_api
from chatkit.backends.selfhosted.database.engine import public_address
from chatkit.commands import import_hosted
from tests.support.applications import MakeApp
from tests.support.fake_openai import API_KEY, FakeOpenAI, failing
from tests.support.fake_server import Handler
from tests.support.responses_api import says, streaming
from tests.support.threads_api import DESCRIBED, Project, answers, asks


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_api, "MAX_WAIT_SECONDS", 0.01)


@pytest.fixture
def project(fake_openai: FakeOpenAI) -> Project:
    fake_openai.behaviour = project = Project()
    return project


class Import:
    """The command, for a service with ``database``."""

    def __init__(self, make_app: MakeApp, database: str) -> None:
        self.make_app = make_app
        self.database = database

    def run(self, *options: str, **variables: str) -> Result:
        app = self.make_app(**{"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": self.database, **variables})
        result = app.test_cli_runner().invoke(args=["import-hosted", *options])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert API_KEY not in result.output
        return result

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with create_engine(self.database).connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def users(self) -> dict[str, int]:
        counts = self.rows("SELECT user_id, count(*) FROM chat_threads GROUP BY user_id")
        return {user: number for user, number in counts}  # noqa: C416


@pytest.fixture
def importing(make_app: MakeApp, database: str) -> Import:
    return Import(make_app, database)


@pytest.fixture
def on_sqlite(make_app: MakeApp, tmp_path: Path) -> Import:
    return Import(make_app, f"sqlite:///{tmp_path}/imported.db")


@pytest.mark.parametrize("backend", ["hosted", "selfhosted"])
def test_visitor_finds_their_conversations(project: Project, importing: Import, backend: str) -> None:
    app = importing.make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=importing.database)
    visitor = app.test_client()

    def chat(type_: str, **params: Any) -> Any:
        secret = visitor.post("/api/chatkit/sessions").get_json()["data"]["client_secret"]
        body = {"type": type_, "params": params}
        return visitor.post("/api/chatkit", json=body, headers={"Authorization": f"Bearer {secret}"}).get_json()

    assert chat("threads.list")["data"] == []
    with visitor.session_transaction() as cookie:
        user = f"anonymous:{cookie['visitor']}"
    for number in range(3):
        project.add(user, *DESCRIBED, title=f"Number {number}")
    project.add("anonymous:other", asks("A secret"))

    result = importing.run(CHATKIT_BACKEND=backend)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "Read: 4 threads with 31 items.",
        f"Database: {public_address(create_engine(importing.database))}.",
        "Stored: 4 new threads, 0 with changes, 31 new items, 0 changed items.",
        "Checked: the database has 4 imported threads with 31 items that were not used here since; all are complete.",
    ]
    threads = chat("threads.list")["data"]
    assert [thread["title"] for thread in threads] == ["Number 2", "Number 1", "Number 0"]
    items = chat("items.list", thread_id=threads[0]["id"], order="asc", limit=100)["data"]
    assert [item["type"] for item in items] == [
        *("user_message", "assistant_message", "user_message", "client_tool_call", "client_tool_call"),
        *("widget", "task", "task", "workflow", "workflow"),
    ]
    assert items[0]["content"] == [{"type": "input_text", "text": "Hello"}]
    times = [datetime.fromtimestamp(item["created_at"], UTC) for item in project.items[threads[0]["id"]]]
    assert [datetime.fromisoformat(item["created_at"]) for item in items] == times


def test_conversation_can_be_continued(fake_openai: FakeOpenAI, project: Project, importing: Import) -> None:
    thread = project.add("anonymous:ada", *DESCRIBED, {"type": "chatkit.hologram", "text": "unknown words"})
    importing.run()
    fake_openai.behaviour = streaming(says("Welcome back"))
    app = importing.make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=importing.database)
    visitor = app.test_client()
    with visitor.session_transaction() as cookie:
        cookie["visitor"] = "ada"
    secret = visitor.post("/api/chatkit/sessions").get_json()["data"]["client_secret"]
    message = {"content": [{"type": "input_text", "text": "Hello"}], "attachments": [], "inference_options": {}}
    body = {"type": "threads.add_user_message", "params": {"thread_id": thread, "input": message}}
    response = visitor.post("/api/chatkit", json=body, headers={"Authorization": f"Bearer {secret}"}, buffered=True)
    assert "Welcome back" in response.text
    assert '"type":"error"' not in response.text
    sent = json.dumps(fake_openai.received[-1].body["input"])
    assert all(words in sent for words in ("See there", "What of this?", "get_color"))
    assert "unknown words" not in sent


def test_import_can_be_repeated(project: Project, importing: Import) -> None:
    threads = [project.add(f"user:{number % 3}", *DESCRIBED) for number in range(7)]
    importing.run()
    before = importing.rows("SELECT * FROM chat_threads, chat_items ORDER BY 1, 6")
    result = importing.run()
    assert result.exit_code == 0
    assert "Stored: 0 new threads, 0 with changes, 0 new items, 0 changed items." in result.stdout
    assert importing.rows("SELECT * FROM chat_threads, chat_items ORDER BY 1, 6") == before

    project.say(threads[3], asks("And then?"))
    project.items[threads[4]][4].update(status="completed", output="1")
    project.add("user:9")
    result = importing.run()
    assert "Stored: 1 new threads, 2 with changes, 1 new items, 1 changed items." in result.stdout
    assert "Checked: the database has 8 imported threads with 71 items" in result.stdout


def test_conversation_that_was_deleted_here_stays_deleted(project: Project, on_sqlite: Import) -> None:
    project.add("user:a", asks("Hello"))
    on_sqlite.run()
    with sqlite3.connect(on_sqlite.database.removeprefix("sqlite:///")) as shell:
        shell.execute("DELETE FROM chat_threads")
    result = on_sqlite.run()
    assert result.exit_code == 0
    assert "Not stored again: 1 threads that were deleted here." in result.stdout
    assert on_sqlite.users() == {}


def test_one_user_only(project: Project, on_sqlite: Import) -> None:
    for user in ("user:a", "user:b", "user:a"):
        project.add(user)
    assert on_sqlite.run("--user", "user:a").exit_code == 0
    assert on_sqlite.users() == {"user:a": 2}


@pytest.mark.parametrize("user", ["", " "])
def test_user_that_is_empty_does_not_import_all(project: Project, on_sqlite: Import, user: str) -> None:
    project.add("user:a")
    result = on_sqlite.run("--user", user)
    assert result.exit_code == 2
    assert "must not be empty; without it, all conversations are imported" in result.stderr
    assert project.requests == []


def test_users_of_other_deployments(project: Project, importing: Import) -> None:
    for user in ("ada", "user:b", "anonymous:c", "user:", "12 34"):
        project.add(user, asks("Hello"))
    result = importing.run()
    assert result.exit_code == 1
    reason = "its user is not one of this service; --user-format maps other identifiers"
    assert f"Not imported: 3 threads, because: {reason}." in result.stdout
    assert f"thread {project.threads[0]['id']}: not imported: {reason}\n" in result.stderr
    assert importing.users() == {"user:b": 1, "anonymous:c": 1}
    assert importing.run("--user-format", "user:{}").exit_code == 0
    assert importing.users() == {"user:ada": 1, "user:b": 1, "anonymous:c": 1, "user:user:": 1, "user:12 34": 1}


@pytest.mark.parametrize("format_", ["{}", "ada:{}", "user:", "user:{}{}", "user:{0}", "user:{user}", ""])
def test_format_that_hides_the_conversations_is_refused(project: Project, on_sqlite: Import, format_: str) -> None:
    project.add("ada")
    result = on_sqlite.run("--user-format", format_)
    assert result.exit_code == 2
    assert "must begin with user: or anonymous: and contain {} once" in result.stderr
    assert project.requests == []


@pytest.mark.parametrize("user", [None, 5, "", "user:\0", "user:" + "x" * 508])
def test_user_that_can_not_be_stored(project: Project, importing: Import, user: Any) -> None:
    project.add(user)
    project.add("user:" + "x" * 507)
    result = importing.run()
    assert result.exit_code == 1
    assert "Not imported: 1 threads, because: its user" in result.stdout.replace("it has no valid user", "its user")
    assert importing.users() == {"user:" + "x" * 507: 1}


def test_dry_run_stores_nothing(project: Project, on_sqlite: Import) -> None:
    project.add("user:a", *DESCRIBED, {"type": "chatkit.hologram"})
    result = on_sqlite.run("--dry-run", CHATKIT_BACKEND="hosted")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "Read: 1 threads with 11 items.",
        "Nothing was stored, because of --dry-run.",
        "Not converted, but kept as OpenAI sent it: an item of the unknown type 'chatkit.hologram' (1 items).",
    ]
    assert not Path(on_sqlite.database.removeprefix("sqlite:///")).exists()


def test_items_that_are_not_as_described_are_reported_and_kept(project: Project, importing: Import) -> None:
    unknown = {"type": "chatkit.hologram", "text": "Tell nobody"}
    attached = {"type": "image", "id": "cfile_1", "name": "a.png", "mime_type": "image/png", "preview_url": None}
    project.add(
        "user:a", asks("Hello"), unknown, {"type": "chatkit.widget", "widget": "{"}, asks("See", attachments=[attached])
    )
    project.items[project.threads[0]["id"]] += [None, ["Tell nobody"]]
    project.threads[0:0] = [{"id": None, "user": "user:a"}, {"user": "user:a", "title": "Tell nobody"}]
    result = importing.run()
    assert result.exit_code == 1, "two threads could not be imported"
    assert importing.users() == {"user:a": 1}
    assert "Read: 3 threads with 6 items." in result.stdout
    for line in (
        "Not converted, but kept as OpenAI sent it: an item of the unknown type 'chatkit.hologram' (1 items).",
        "Not converted, but kept as OpenAI sent it: a malformed chatkit.widget (1 items).",
        "Not converted, but kept as OpenAI sent it: attachments (1 items).",
        "Not converted, but kept as OpenAI sent it: an item without a type (2 items).",
        "Not imported: 2 threads, because: a thread without a valid id.",
    ):
        assert line in result.stdout.splitlines()
    assert "Tell nobody" not in result.output
    kept = [json.loads(data) for (data,) in importing.rows("SELECT data FROM chat_items ORDER BY position")]
    originals = [json.loads(item.get("original", "null")) for item in kept]
    assert originals[0] is None
    assert [original for original in originals[1:4] if original["thread_id"]][2]["attachments"] == [attached]
    assert originals[1]["text"] == "Tell nobody"
    assert originals[4:] == [None, ["Tell nobody"]]


def test_equal_items_without_an_id_are_all_kept(project: Project, importing: Import) -> None:
    thread = project.add("user:a", asks("Hello"))
    project.items[thread] += [None, {**asks("Again"), "id": None}, None, {**asks("Again"), "id": None}]
    for _ in range(2):
        result = importing.run()
        assert "Checked: the database has 1 imported threads with 5 items" in result.stdout
    stored = [json.loads(data) for (data,) in importing.rows("SELECT data FROM chat_items ORDER BY position")]
    assert [item["type"] for item in stored] == ["user_message", "end_of_turn", "user_message", "end_of_turn", "user_message"]


def test_limits_and_breaks_in_the_middle(project: Project, importing: Import) -> None:
    project.largest_page = 2
    for number in range(9):
        project.add(f"user:{number}", *(asks(str(n)) for n in range(5)))
    busy = failing(429, "rate_limit_exceeded", Retry_After="0.05")
    project.faults = dict.fromkeys(range(3, 200, 4), busy) | {10: Handler.hang_up, 17: failing(500, "server_error")}
    result = importing.run()
    assert result.exit_code == 0, result.output
    assert "Stored: 9 new threads, 0 with changes, 45 new items, 0 changed items." in result.stdout
    orders = importing.rows("SELECT id FROM chat_items ORDER BY thread_id, position")
    assert [id_ for (id_,) in orders] == [item["id"] for items in project.items.values() for item in items]


def test_import_goes_on_where_it_was_broken_off(project: Project, importing: Import) -> None:
    project.largest_page = 4
    for number in range(10):
        project.add(f"user:{number}", asks("Hello"))
    project.faults = dict.fromkeys(range(6, 100), failing(503, "overloaded"))
    result = importing.run()
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: OpenAI answered 503 (overloaded), 8 times in a row. "
        "Run the command again to continue; what has been read is stored."
    )
    assert "Stored: 4 new threads, 0 with changes, 4 new items, 0 changed items." in result.stdout
    assert len(importing.users()) == 4
    project.faults = {}
    result = importing.run()
    assert result.exit_code == 0
    assert "Stored: 6 new threads" in result.stdout
    assert len(importing.users()) == 10


def test_thread_that_can_not_be_read_does_not_stop_the_others(
    fake_openai: FakeOpenAI, project: Project, on_sqlite: Import
) -> None:
    for number in range(5):
        project.add(f"user:{number}", asks("Hello"))
    gone, broken = project.threads[1]["id"], project.threads[3]["id"]
    del project.items[gone]
    fake_openai.behaviour = lambda handler: (failing(500, "server_error") if broken in handler.path else project)(handler)
    result = on_sqlite.run()
    assert result.exit_code == 1
    assert sorted(on_sqlite.users()) == ["user:0", "user:2", "user:4"]
    assert "Not imported: 2 threads, because: its items can't be read." in result.stdout
    assert f"thread {gone}: not imported: its items can't be read: OpenAI answered 404 (not_found)" in result.stderr
    assert f"thread {broken}: not imported: its items can't be read: OpenAI answered 500 (server_error), 8" in result.stderr


def test_any_number_of_threads_that_openai_refuses_is_left_out(project: Project, on_sqlite: Import) -> None:
    for number in range(9):
        project.add(f"user:{number}", asks("Hello"))
    for number in range(2, 7):
        del project.items[project.threads[number]["id"]]
    for _ in range(2):
        result = on_sqlite.run()
        assert result.exit_code == 1
        assert sorted(on_sqlite.users()) == ["user:0", "user:1", "user:7", "user:8"]
        assert "Not imported: 5 threads, because: its items can't be read." in result.stdout


def test_run_without_success_ends(project: Project, on_sqlite: Import) -> None:
    for number in range(20):
        project.add(f"user:{number}", asks("Hello"))
    project.faults = dict.fromkeys(range(2, 1000), failing(500, "server_error"))
    assert on_sqlite.run().exit_code == 1
    assert len(project.requests) == 1 + import_hosted.MAX_FAILURES_IN_A_ROW * threads_api.MAX_ATTEMPTS


def test_key_that_is_withdrawn_in_the_middle(project: Project, on_sqlite: Import) -> None:
    for number in range(5):
        project.add(f"user:{number}")
    project.faults = dict.fromkeys(range(4, 100), failing(401, "invalid_api_key"))
    result = on_sqlite.run()
    assert result.exit_code == 1
    assert "OPENAI_API_KEY is not valid, or may not read this project's conversations" in result.stderr
    assert len(project.requests) == 4


def test_without_a_key(project: Project, on_sqlite: Import) -> None:
    result = on_sqlite.run(OPENAI_API_KEY="")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: OPENAI_API_KEY is not set; the conversations are read with it.\n"


def test_database_that_is_not_configured_is_not_filled(
    project: Project, make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "INSTANCE", tmp_path / "instance")
    project.add("user:a")
    for backend in ("hosted", "selfhosted"):
        result = make_app(CHATKIT_BACKEND=backend, DATABASE_URL="").test_cli_runner().invoke(args=["import-hosted"])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "Error: DATABASE_URL is not set; it is the database in which the conversations are stored.\n"
    assert project.requests == []
    on_own_machine = Import(make_app, "").run(CHATKIT_ENV="development")
    assert on_own_machine.exit_code == 0
    assert f"Database: sqlite:///{tmp_path}/instance/chatkit.db." in on_own_machine.stdout
    assert Import(make_app, "").run("--dry-run").exit_code == 0


def test_without_a_database(project: Project, on_sqlite: Import, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    project.add("user:a")
    on_sqlite.database = f"sqlite:///{tmp_path}/file/chatkit.db"
    result = on_sqlite.run(CHATKIT_BACKEND="hosted")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: DATABASE_URL: the database can't be reached or written")
    assert result.stderr.count("\n") == 1


def test_database_that_fails_in_the_middle(project: Project, on_sqlite: Import) -> None:
    for number in range(3):
        project.add(f"user:{number}")

    def break_database(handler: Handler) -> None:
        with sqlite3.connect(on_sqlite.database.removeprefix("sqlite:///")) as shell:
            shell.execute("ALTER TABLE chat_imports RENAME TO elsewhere")
        handler.respond(200, {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None})

    project.faults = {3: break_database}
    result = on_sqlite.run(CHATKIT_BACKEND="hosted")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: DATABASE_URL: the tables are missing. Run the command again to continue; what has been read is stored.\n"
    )
    assert on_sqlite.users() == {"user:0": 1}


def test_items_that_are_missing_in_the_end_are_reported(project: Project, on_sqlite: Import) -> None:
    thread = project.add("user:a", asks("Hello"), answers("Hello"))
    project.add("user:b", asks("Hello"))
    on_sqlite.run()
    with sqlite3.connect(on_sqlite.database.removeprefix("sqlite:///")) as shell:
        shell.execute("DELETE FROM chat_items WHERE thread_id = ?", [project.threads[1]["id"]])
        shell.execute("DELETE FROM chat_items WHERE id = ?", [project.items[thread][0]["id"]])
    project.threads.clear()
    result = on_sqlite.run()
    assert result.exit_code == 1
    assert f"thread {thread}: 1 of 2 items are in the database" in result.stderr
    assert "2 imported threads with 1 items that were not used here since; 2 threads are incomplete." in result.stdout


def test_progress_where_there_is_no_terminal(project: Project, on_sqlite: Import) -> None:
    for number in range(230):
        project.add(f"user:{number}", asks("Hello"))
    result = on_sqlite.run()
    assert result.stderr.splitlines() == ["100 threads with 100 items read", "200 threads with 200 items read"]
