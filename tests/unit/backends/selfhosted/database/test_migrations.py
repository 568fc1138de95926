"""Migrations: applied at start-up, by one process at a time, to the schema that the models declare."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, text

from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.database.tables import (
    AttachmentContentRow,
    AttachmentRow,
    Base,
    ImageRow,
    ItemRow,
    PausedRunRow,
    ThreadRow,
)
from chatkit.settings import SettingsError
from tests.support.forks import ForkedCommand
from tests.support.service import PROJECT, environment, free_port


def test_migrations_match_the_models(empty_database: str) -> None:
    with open_database(empty_database).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_opening_again_changes_nothing(empty_database: str) -> None:
    with open_database(empty_database).begin() as connection:
        connection.execute(
            text("INSERT INTO chat_sessions (id, secret_hash, user_id, expires_at) VALUES ('ses_1', '\\x00', 'u', 1)")
        )
    with open_database(empty_database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM chat_sessions")).scalar_one() == 1


def test_concurrent_start_on_an_empty_database(empty_database: str) -> None:
    starting = [ForkedCommand(open_database, empty_database) for _ in range(6)]
    written = {process.communicate(timeout=60)[1] for process in starting}
    assert written <= {b"", b"Waiting for another process to migrate the database\n"}, "the notice appears on a slow machine"
    assert {process.wait() for process in starting} == {0}
    with create_engine(empty_database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1


def test_newer_schema_is_refused(empty_database: str) -> None:
    with open_database(empty_database).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="not one that this version knows"):
        open_database(empty_database)


def test_failed_migration_is_rolled_back(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(Operations, "create_index", fail)
        with pytest.raises(RuntimeError):
            open_database(empty_database)
    open_database(empty_database)


def test_conversations_of_an_earlier_version_are_kept(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _head: upgrade(config, "0002"))
        engine = open_database(empty_database)
    thread = {"id": "thr_1", "user_id": "anonymous:a", "used_at": 1, "data": "{}"}
    item = {"thread_id": "thr_1", "user_id": "anonymous:a", "id": "msg_1", "data": "{}"}
    with engine.begin() as connection:
        connection.execute(insert(ThreadRow), [thread])
        connection.execute(insert(ItemRow), [{**item, "id": f"msg_{number}"} for number in range(3)])
    with open_database(empty_database).begin() as connection:
        connection.execute(text("UPDATE chat_threads SET user_id = 'user:ada'"))
        items = connection.execute(text("SELECT id, user_id FROM chat_items ORDER BY position")).all()
    assert [tuple(row) for row in items] == [(f"msg_{number}", "user:ada") for number in range(3)]


THREADS = [{"id": f"thr_{number}", "user_id": "anonymous:a", "used_at": 1, "data": "{}"} for number in (1, 2)]
ITEMS = [{"thread_id": thread["id"], "user_id": "anonymous:a", "id": "msg_1", "data": "{}"} for thread in THREADS]
ATTACHMENTS = [
    {"id": f"atc_{number}", "user_id": "anonymous:a", "thread_id": thread, "data": "{}"}
    for number, thread in enumerate(("thr_1", "thr_2", None))
]


def test_deleting_a_thread_in_a_shell_deletes_its_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chatkit.db"
    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _head: upgrade(config, "0004"))
        engine = open_database(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(insert(ThreadRow), THREADS)
        connection.execute(insert(ItemRow), ITEMS)
        connection.execute(insert(AttachmentRow), ATTACHMENTS)
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("DELETE FROM chat_threads WHERE id = 'thr_1'")
        shell.commit()
        assert shell.execute("SELECT count(*) FROM chat_items").fetchone() == (2,), "without a cascade before 0005"

        open_database(f"sqlite:///{path}")
        assert shell.execute("SELECT thread_id FROM chat_items").fetchall() == [("thr_2",)]
        assert shell.execute("SELECT id FROM chat_attachments ORDER BY id").fetchall() == [("atc_1",), ("atc_2",)]
        with engine.begin() as connection:
            run = {"thread_id": "thr_2", "user_id": "anonymous:a", "decisions": "{}", "state": "{}"}
            connection.execute(insert(PausedRunRow), [run])
            image = {"id": "img_1", "thread_id": "thr_2", "user_id": "anonymous:a", "item_id": "msg_1"}
            connection.execute(insert(ImageRow), [{**image, "media_type": "image/png", "data": b""}])
            contents = [{"attachment_id": attachment_id, "data": b""} for attachment_id in ("atc_1", "atc_2")]
            connection.execute(insert(AttachmentContentRow), contents)

        shell.execute("DELETE FROM chat_threads")
        shell.commit()
        assert shell.execute("SELECT count(*) FROM chat_items").fetchone() == (0,)
        assert shell.execute("SELECT id FROM chat_attachments").fetchall() == [("atc_2",)], "not yet part of a thread"
        assert shell.execute("SELECT attachment_id FROM chat_attachment_contents").fetchall() == [("atc_2",)]
        assert shell.execute("SELECT count(*) FROM chat_paused_runs").fetchone() == (0,)
        assert shell.execute("SELECT count(*) FROM chat_images").fetchone() == (0,)


def test_downgrade_and_upgrade(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_database(empty_database)
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _head: command.downgrade(config, "0001"))
        open_database(empty_database)
    test_migrations_match_the_models(empty_database)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://user:hunter2@127.0.0.1:{port}/db",
        "postgresql+psycopg://user:hunter2@127.0.0.1:notaport/db",
        "postgresql+psycopg://user:hunter2@127.0.0.1:{port}/db?sslmod=require",
        "sqlite:////proc/nowhere/chatkit.db",
        "sqlite:////tmp/chatkit.db?timeout=hunter2",
        "sqlite:////dev/null",
    ],
)
def test_unreachable_database_is_a_setting_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatkit.backends.selfhosted.database.engine.START_SECONDS", 0)
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: ") as caught:
        open_database(address.format(port=free_port()))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alembic_command_line(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    open_database(address)
    variables = environment(DATABASE_URL=address)
    command = [sys.executable, "-m", "alembic", "check"]
    done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False, timeout=60)
    assert "No new upgrade operations detected" in done.stdout, done.stderr
