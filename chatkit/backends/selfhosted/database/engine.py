"""The database engine: connections, timeouts, error descriptions, and schema migrations with Alembic."""

from __future__ import annotations

import logging
import select
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
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
from chatkit.web.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_SECONDS = 5  # to connect, for a free connection of the pool, for a lock, for a statement
SERVER_SECONDS = 7  # for any reply of PostgreSQL; longer than WAIT_SECONDS, so that the server reports its own timeout first
DEADLINE = "chatkit_deadline"
"""A connection's execution option: the time, on the monotonic clock, by which its statements must be done."""
IDLE_SECONDS = 5  # a connection idle for longer is tested before use; the network may have closed it
START_SECONDS = 30  # how long connecting to PostgreSQL is retried at startup
RETRY_SECONDS = 3
MIGRATION_SECONDS = 60  # for another process to finish its migration
MIGRATION_NOTICE_SECONDS = 2  # a longer wait is logged

# Raised when the database can't be used, as opposed to programming errors. See _to_operational_error().
UNAVAILABLE = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)

_NO_RESPONSE = "the database does not answer"
_READ_ONLY = "the database is read-only"
_NO_TABLES = "the tables are missing"
_DAMAGED = "the database is damaged"
_DISK_FULL = "the disk is full"
_ERROR_DESCRIPTIONS = {  # by PostgreSQL's SQLSTATE or SQLite's result code
    "25006": _READ_ONLY,
    "42501": "the database user may not write",
    "42P01": _NO_TABLES,
    "53100": _DISK_FULL,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_FULL: _DISK_FULL,
    sqlite3.SQLITE_IOERR: "the disk can't be read or written",  # also over a quota
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}

_Value = TypeVar("_Value")


def open_database(address: str, connections: int = 5) -> Engine:
    """Upgrade the schema at ``address`` and return an engine with at most ``connections`` connections.

    The engine connects at first use, after gunicorn has forked.

    Raises:
        SettingsError: the database can't be reached or its schema is unknown.
    """
    try:
        url = _parse(address)
        if _is_sqlite(url) and url.database:
            _warn_if_world_readable(Path(url.database))
        _migrate_with_retry(url)
        return _make_pooled_engine(url, connections)
    except (exc.ArgumentError, ValueError, TypeError) as error:
        raise SettingsError("DATABASE_URL: not a valid database URL.") from error
    except exc.ProgrammingError as error:
        if not isinstance(error.orig, psycopg.Error) or error.orig.sqlstate:
            raise
        raise SettingsError(f"DATABASE_URL: {_first_line(error)}.") from error  # an unknown option
    except (*UNAVAILABLE, OSError) as error:
        raise SettingsError(f"DATABASE_URL: the database can't be reached or written: {_first_line(error)}") from error
    except CommandError as error:
        raise SettingsError(f"DATABASE_URL: the database's schema is not one that this version knows: {error}") from error


def make_engine(address: str | URL) -> Engine:
    """Return an engine for migrations and commands, without a pool and without a statement timeout."""
    return _create_engine(_parse(address), poolclass=NullPool)


def _parse(address: str | URL) -> URL:
    url = make_url(address)
    if not _is_sqlite(url) and "@" in f"{url.host}{url.database}":
        # The driver's errors would quote what comes after the first @.
        raise SettingsError("DATABASE_URL: an @ in the user name or the password has to be written as %40.")
    return url


def _make_pooled_engine(url: URL, connections: int) -> Engine:
    """Return an engine for requests, with a bounded pool and timeouts."""
    pool = {"pool_size": connections, "max_overflow": 0, "pool_timeout": WAIT_SECONDS}
    if _is_sqlite(url):
        return _create_engine(url, **pool)
    engine = _create_engine(url, isolation_level="AUTOCOMMIT", **pool)  # _begin() begins transactions
    event.listen(engine, "begin", _begin)
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkout", _check_connection)
    return engine


def _create_engine(url: URL, **pool: Any) -> Engine:
    if _is_sqlite(url):
        if url.database:
            _create_private_file(Path(url.database))
        arguments: dict[str, Any] = {"timeout": WAIT_SECONDS}
    else:
        arguments = {
            "connect_timeout": WAIT_SECONDS,
            # A connection whose network is dead is closed after tcp_user_timeout (milliseconds), even while idle.
            "tcp_user_timeout": int(WAIT_SECONDS * 1000),
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "prepare_threshold": None,  # with PgBouncer the next transaction may use another server connection
        }
    # hide_parameters keeps values out of logged errors.
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, **pool)
    event.listen(engine, "handle_error", _to_operational_error)
    if _is_sqlite(url):
        event.listen(engine, "connect", _configure_sqlite)
    return engine


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _create_private_file(path: Path) -> None:
    """Create the SQLite file, readable only by its owner. SQLite gives its WAL files the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)


def _warn_if_world_readable(path: Path) -> None:
    """Only warn: an operator may have chosen this mode."""
    if path.is_file() and path.stat().st_mode & stat.S_IROTH:
        log.warning("DATABASE_URL: every user of this machine can read the SQLite file; `chmod 600` it and restart")


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """WAL lets readers and a writer work at once. NORMAL skips the fsync per commit: only a power failure can lose a commit."""
    _enable_wal(connection)
    for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _enable_wal(connection: sqlite3.Connection) -> None:
    """Retry: while another connection does the same to a new file, SQLite fails at once, whatever its busy timeout."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin(connection: Connection) -> None:
    """Begin a transaction and set its timeouts, in one round trip.

    PgBouncer rejects these settings at connection time, and a plain ``SET`` would stay on a shared server connection.
    """
    deadline = connection.get_execution_options().get(DEADLINE)
    seconds = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
    limit = max(1, int(seconds * 1000))  # 0 would disable it
    connection.exec_driver_sql(f"BEGIN; SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}")


class _LimitedConnection(psycopg.Connection[Any]):
    """A connection that times out if the server stops responding, which the server's own timeouts do not cover."""

    used_at = 0.0

    def wait(self, gen: PQGen[_Value], interval: float = 0.1, timeout: float | None = None) -> _Value:
        try:
            self.used_at = time.monotonic()
            return super().wait(gen, interval, timeout or SERVER_SECONDS)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # its state is unknown
            raise


def _check_connection(connection: _LimitedConnection, _record: Any, _fairy: Any) -> None:
    """Detect connections that the server has closed, without a round trip for those used recently."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    closed = poll.poll(0)  # an idle connection becomes readable only when it is closed
    try:
        if closed or time.monotonic() - connection.used_at > IDLE_SECONDS:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise exc.InvalidatePoolError from error


def _connect(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> _LimitedConnection:
    return _LimitedConnection.connect(*arguments, **keywords)


def _to_operational_error(context: ExceptionContext) -> exc.OperationalError | None:
    """Convert database faults that the drivers report as programming errors, so that ``UNAVAILABLE`` covers them."""
    error = context.sqlalchemy_exception
    if isinstance(error, exc.DBAPIError) and not isinstance(error, UNAVAILABLE) and _error_description(error.orig):
        return exc.OperationalError(error.statement, error.params, error.orig or error, hide_parameters=True)
    return None


def describe(error: Exception) -> str:
    """Describe a database error without secrets."""
    if isinstance(error, CommandError):
        return "its schema is not one that this version knows"
    if isinstance(error, exc.TimeoutError):
        return "all connections are busy"
    return _error_description(error.orig if isinstance(error, exc.DBAPIError) else error) or _NO_RESPONSE


def unavailable(detail: str, error: Exception) -> DatabaseUnavailable:
    """Return the contract's error for ``error``, one of ``UNAVAILABLE``. Raise it from that one."""
    return DatabaseUnavailable(f"{detail}: {describe(error)}")


def _error_description(error: BaseException | None) -> str | None:
    if isinstance(error, psycopg.Error):
        return _ERROR_DESCRIPTIONS.get(error.sqlstate or "")
    if isinstance(error, sqlite3.Error):
        if str(error).startswith("no such table"):
            return _NO_TABLES
        return _ERROR_DESCRIPTIONS.get(_sqlite_code(error))
    return None


def _sqlite_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for errors of the Python module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _first_line(error: Exception) -> str:
    # The driver's message contains the server and the user, but never the password.
    return str(error.orig if isinstance(error, exc.DBAPIError) else error).partition("\n")[0]


def public_address(engine: Engine) -> str:
    """Return the address of the database without the user, the password and the options, which may contain one."""
    url = engine.url
    return str(URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database))


def file_identity(engine: Engine) -> tuple[int, int] | None:
    """Return the device and inode of the SQLite file; ``None`` if it does not exist, and for PostgreSQL."""
    if not _is_sqlite(engine.url) or not engine.url.database:
        return None
    try:
        status = Path(engine.url.database).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _migrate_with_retry(url: URL) -> None:
    """Migrate, and retry while the server accepts no connection: it may be starting together with this service."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return migrate(url, MIGRATION_SECONDS)
        except exc.OperationalError as error:
            no_connection = isinstance(error.orig, psycopg.Error) and error.orig.sqlstate is None
            left = deadline - time.monotonic()
            if not no_connection or left <= 0:
                raise
            log.warning("The database can't be used yet; trying again for %.0f s: %s", left, _first_line(error))
        time.sleep(RETRY_SECONDS)


def migrate(url: URL, wait_seconds: float) -> None:
    """Upgrade the schema to the newest revision. Safe to call from several processes at once: one migrates, the others wait.

    Raises:
        sqlalchemy.exc.TimeoutError: another process took longer than ``wait_seconds``.
    """
    with _exclusive_transaction(url, wait_seconds) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _exclusive_transaction(url: URL, wait_seconds: float) -> Iterator[Connection]:
    """Begin a transaction that only one process can hold at a time."""
    engine = make_engine(url)
    if _is_sqlite(url):
        # The driver would begin the transaction only at the first write, too late to exclude others.
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
            # An arbitrary number that nothing else on this database uses. Released at the end of the transaction.
            lock = text("SELECT pg_try_advisory_xact_lock(4362780117)")
            _wait_for(lambda: bool(connection.execute(lock).scalar_one()), wait_seconds)
            # Other clients may hold locks on the tables.
            timeout = text("SELECT set_config('lock_timeout', :milliseconds, true)")
            connection.execute(timeout, {"milliseconds": str(int(wait_seconds * 1000))})
            yield connection


def _begin_exclusive(connection: Connection) -> bool:
    try:
        connection.execute(text("BEGIN EXCLUSIVE"))
    except exc.OperationalError as error:
        if isinstance(error.orig, sqlite3.Error) and _sqlite_code(error.orig) == sqlite3.SQLITE_BUSY:
            return False
        raise
    return True


def _wait_for(acquire: Callable[[], bool], seconds: float) -> None:
    start = time.monotonic()
    logged = False
    while not acquire():
        waited = time.monotonic() - start
        if waited > seconds:
            raise exc.TimeoutError(f"another process has locked it for {seconds:.0f} s")
        if waited > MIGRATION_NOTICE_SECONDS and not logged:
            log.warning("Waiting for another process to migrate the database")
            logged = True
        time.sleep(0.1)
