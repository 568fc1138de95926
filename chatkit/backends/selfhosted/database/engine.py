"""The database of the self-hosted backend: its engine, its limits, and its schema, upgraded by Alembic."""

from __future__ import annotations

import logging
import select
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, ExceptionContext, NullPool, create_engine, event, exc, make_url, text

from chatkit.settings import SettingsError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_SECONDS = 5  # for a connection, for a free one of the pool, for a lock, for a statement
SERVER_SECONDS = 7  # for any reply of PostgreSQL; longer than WAIT_SECONDS, so that the server reports its own timeout first
DEADLINE = "chatkit_deadline"
"""The execution option of a connection for the moment, on the monotonic clock, when its statements have to be done."""
IDLE_SECONDS = 5  # a connection that was idle for longer is tried first; the network may have dropped it
START_SECONDS = 30  # how long a PostgreSQL server that is down is retried at start-up
RETRY_SECONDS = 3
MIGRATION_SECONDS = 60  # for another process to finish its migration
MIGRATION_NOTICE_SECONDS = 2  # a wait that is longer is logged

# What a database raises when it can't be used, as opposed to when we use it wrongly. _as_operational() adds to the first.
UNAVAILABLE = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)

_UNANSWERED = "the database does not answer"
_READ_ONLY = "the database is read-only"
_NO_TABLES = "the tables are missing"
_DAMAGED = "the database is damaged"
_DISK_FULL = "the disk is full"
_FAULTS = {  # PostgreSQL's SQLSTATE and SQLite's result code
    "25006": _READ_ONLY,
    "42501": "the database user may not write",
    "42P01": _NO_TABLES,
    "53100": _DISK_FULL,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_FULL: _DISK_FULL,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}

_Value = TypeVar("_Value")


def open_database(address: str, connections: int = 5) -> Engine:
    """An engine for ``address`` with at most ``connections`` connections, and the schema up to date.

    Connections are made at first use, after gunicorn has forked.

    Raises:
        SettingsError: when the database can't be reached or its schema is unknown.
    """
    try:
        url = make_url(address)
        if _is_sqlite(url) and url.database:
            _warn_of_readable_file(Path(url.database))
        _migrate_once_up(url)
        return _make_pooled_engine(url, connections)
    except (exc.ArgumentError, ValueError) as error:
        raise SettingsError("DATABASE_URL: this is not the address of a database.") from error
    except (*UNAVAILABLE, OSError) as error:
        raise SettingsError(f"DATABASE_URL: the database can't be reached or written: {_first_line(error)}") from error
    except CommandError as error:
        raise SettingsError(f"DATABASE_URL: the database's schema is not one that this version knows: {error}") from error


def make_engine(address: str | URL) -> Engine:
    """An engine for migrations: no pool, and no time limit for a statement."""
    return _create_engine(make_url(address), poolclass=NullPool)


def _make_pooled_engine(url: URL, connections: int) -> Engine:
    """An engine for requests. Callers wait in line for a connection, and nothing they do takes longer than its limit."""
    pool = {"pool_size": connections, "max_overflow": 0, "pool_timeout": WAIT_SECONDS}
    if _is_sqlite(url):
        return _create_engine(url, **pool)
    engine = _create_engine(url, isolation_level="AUTOCOMMIT", **pool)  # _begin begins transactions
    event.listen(engine, "begin", _begin)
    event.listen(engine, "do_connect", _connect_with_limit)
    event.listen(engine, "checkout", _check_connection)
    return engine


def _create_engine(url: URL, **pool: Any) -> Engine:
    if _is_sqlite(url):
        if url.database:
            _prepare_file(Path(url.database))
        arguments: dict[str, Any] = {"timeout": WAIT_SECONDS}
    else:
        arguments = {
            "connect_timeout": WAIT_SECONDS,
            # A connection whose network is dead is closed after tcp_user_timeout (milliseconds), also while it waits.
            "tcp_user_timeout": int(WAIT_SECONDS * 1000),
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "prepare_threshold": None,  # behind PgBouncer the next transaction may be on another server connection
        }
    # hide_parameters: a failing statement is logged without the values in it.
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, **pool)
    event.listen(engine, "handle_error", _as_operational)
    if _is_sqlite(url):
        event.listen(engine, "connect", _configure_sqlite)
    return engine


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _prepare_file(path: Path) -> None:
    """Create a SQLite file that only this process's user can read. What SQLite puts beside it gets the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)


def _warn_of_readable_file(path: Path) -> None:
    """An operator may want that every user of the machine can read the file, so it stays as it is."""
    if path.is_file() and path.stat().st_mode & stat.S_IROTH:
        log.warning("DATABASE_URL: every user of this machine can read the SQLite file; `chmod 600` it and restart")


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """Readers and one writer at once, and no wait for the disk on each commit: a crash loses no commit but a power cut may."""
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Begin a transaction, each statement of which is limited, in one round trip.

    PgBouncer refuses these settings at connection time, and a ``SET`` would stay on a server connection that others share.
    """
    deadline = connection.get_execution_options().get(DEADLINE)
    seconds = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
    limit = max(1, int(seconds * 1000))  # 0 would be no limit
    connection.exec_driver_sql(f"BEGIN; SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}")


class _LimitedConnection(psycopg.Connection[Any]):
    """Gives up a server that is connected and does not answer, which no timeout of the server's own covers."""

    used_at = 0.0

    def wait(self, gen: PQGen[_Value], interval: float = 0.1, timeout: float | None = None) -> _Value:
        try:
            self.used_at = time.monotonic()
            return super().wait(gen, interval, timeout or SERVER_SECONDS)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # what it is doing is unknown
            raise


def _check_connection(connection: _LimitedConnection, _record: Any, _fairy: Any) -> None:
    """Find connections that the server has closed, such as after a restart. Asking it each time takes a round trip."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    closed = poll.poll(0)  # nothing is to come on an idle connection but its end
    try:
        if closed or time.monotonic() - connection.used_at > IDLE_SECONDS:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise exc.InvalidatePoolError from error


def _connect_with_limit(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> _LimitedConnection:
    return _LimitedConnection.connect(*arguments, **keywords)


def _as_operational(context: ExceptionContext) -> exc.OperationalError | None:
    """Report faults of the database by one type, where the drivers use the types of a mistake of the caller."""
    error = context.sqlalchemy_exception
    if isinstance(error, exc.DBAPIError) and not isinstance(error, UNAVAILABLE) and _fault(error.orig):
        return exc.OperationalError(error.statement, error.params, error.orig or error, hide_parameters=True)
    return None


def describe(error: Exception) -> str:
    """What is wrong with the database, without anything that is secret."""
    if isinstance(error, CommandError):
        return "its schema is not one that this version knows"
    if isinstance(error, exc.TimeoutError):
        return "all connections are busy"
    return _fault(error.orig if isinstance(error, exc.DBAPIError) else error) or _UNANSWERED


def _fault(error: BaseException | None) -> str | None:
    if isinstance(error, psycopg.Error):
        return _FAULTS.get(error.sqlstate or "")
    if isinstance(error, sqlite3.Error):
        if str(error).startswith("no such table"):
            return _NO_TABLES
        return _FAULTS.get(_sqlite_code(error))
    return None


def _sqlite_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code. Errors of the module itself have none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _first_line(error: Exception) -> str:
    # What the driver says names the server and the user, and never the password.
    return str(error.orig if isinstance(error, exc.DBAPIError) else error).partition("\n")[0]


def file_identity(engine: Engine) -> tuple[int, int] | None:
    """Device and inode of SQLite's file. ``None`` if it does not exist, and for PostgreSQL."""
    if not _is_sqlite(engine.url) or not engine.url.database:
        return None
    try:
        status = Path(engine.url.database).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _migrate_once_up(url: URL) -> None:
    """Migrate. A server that can't be reached is retried: at a deployment it may start together with this service."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return migrate(url, MIGRATION_SECONDS)
        except exc.OperationalError as error:
            no_connection = isinstance(error.orig, psycopg.Error) and error.orig.sqlstate is None
            left = deadline - time.monotonic()
            if not no_connection or left <= 0:
                raise
            log.warning("The database does not answer; trying again for %.0f s: %s", left, _first_line(error))
        time.sleep(RETRY_SECONDS)


def migrate(url: URL, wait_seconds: float) -> None:
    """Upgrade the schema to the newest revision. Safe to run from several processes at once: one does it, the rest wait.

    Raises:
        sqlalchemy.exc.TimeoutError: when others take longer than ``wait_seconds``.
    """
    with _locked(url, wait_seconds) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _locked(url: URL, wait_seconds: float) -> Iterator[Connection]:
    """A transaction that no other process can be in at the same time, on the same database."""
    engine = make_engine(url)
    if _is_sqlite(url):
        # The driver would begin a transaction only at the first write, too late to keep others out.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("PRAGMA busy_timeout = 100"))
            _wait_for(lambda: _begin_exclusive(connection), wait_seconds)
            try:
                yield connection
            except BaseException:
                connection.execute(text("ROLLBACK"))
                raise
            connection.execute(text("COMMIT"))
    else:
        with engine.begin() as connection:
            # Any number will do as long as nothing else on this database uses it; freed at the transaction's end.
            lock = text("SELECT pg_try_advisory_xact_lock(4362780117)")
            _wait_for(lambda: bool(connection.execute(lock).scalar_one()), wait_seconds)
            # For locks of tables that somebody else holds.
            limit = text("SELECT set_config('lock_timeout', :limit, true)")
            connection.execute(limit, {"limit": str(int(wait_seconds * 1000))})
            yield connection


def _begin_exclusive(connection: Connection) -> bool:
    try:
        connection.execute(text("BEGIN EXCLUSIVE"))
    except exc.OperationalError as error:
        if isinstance(error.orig, sqlite3.Error) and _sqlite_code(error.orig) == sqlite3.SQLITE_BUSY:
            return False
        raise
    return True


def _wait_for(lock: Any, seconds: float) -> None:
    start = time.monotonic()
    logged = False
    while not lock():
        waited = time.monotonic() - start
        if waited > seconds:
            raise exc.TimeoutError(f"another process has locked it for {seconds:.0f} s")
        if waited > MIGRATION_NOTICE_SECONDS and not logged:
            log.warning("Waiting for another process to migrate the database")
            logged = True
        time.sleep(0.1)
