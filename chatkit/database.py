"""The database of the self-hosted backend: how to reach it, and its schema, moved on by Alembic."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url, text

from chatkit.settings import SettingsError

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_SECONDS = 5  # for a connection, for a free place in the pool, for another writer of a SQLite file

# What a database raises when it is away, as opposed to when we use it wrongly.
UNAVAILABLE = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError)


def open_database(address: str) -> Engine:
    """An engine for ``address``, with the schema up to date. Connections are made at first use, after gunicorn has forked.

    Raises:
        SettingsError: when the database can't be reached or its schema is not ours to move on.
    """
    try:
        engine = make_engine(address)
        migrate(engine)
    except (exc.ArgumentError, ValueError) as error:
        raise SettingsError("DATABASE_URL: this is not the address of a database.") from error
    except (*UNAVAILABLE, OSError) as error:
        # What the driver says names the server and the user, and never the password.
        reason = str(error.orig if isinstance(error, exc.DBAPIError) else error).partition("\n")[0]
        raise SettingsError(f"DATABASE_URL: the database can't be reached or written: {reason}") from error
    except CommandError as error:
        raise SettingsError(f"DATABASE_URL: the database's schema is not one that this version knows: {error}") from error
    engine.dispose()
    return engine


def make_engine(address: str) -> Engine:
    """An engine for ``address``, whatever its schema."""
    url = make_url(address)
    # hide_parameters: a failing statement is logged without the values in it.
    options: dict[str, Any] = {"hide_parameters": True, "pool_timeout": WAIT_SECONDS}
    if url.get_backend_name() == "sqlite":
        if url.database:
            _prepare_file(Path(url.database))
        engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS}, **options)
        event.listen(engine, "connect", _configure_sqlite)
        return engine
    # A server that went away without a word is given up after tcp_user_timeout (milliseconds).
    arguments = {"connect_timeout": WAIT_SECONDS, "tcp_user_timeout": WAIT_SECONDS * 1000}
    return create_engine(url, connect_args=arguments, pool_pre_ping=True, **options)


def _prepare_file(path: Path) -> None:
    """Create a SQLite file that only this process's user can read. What SQLite puts beside it gets the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
    elif path.is_file() and path.stat().st_mode & stat.S_IROTH:  # an operator may want that, so it stays
        log.warning("DATABASE_URL: every user of this machine can read the SQLite file; `chmod 600` it and restart")


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """Readers and one writer at once, and no wait for the disk on each commit: a crash loses no commit but a power cut may."""
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision. Safe to run from several processes at once: one does it, the rest wait."""
    with _locked(engine) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other process can be in at the same time, on the same database."""
    if engine.dialect.name == "sqlite":
        # The driver would begin a transaction only at the first write, too late to keep others out.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("BEGIN EXCLUSIVE"))
            try:
                yield connection
            except BaseException:
                connection.execute(text("ROLLBACK"))
                raise
            connection.execute(text("COMMIT"))
    else:
        with engine.begin() as connection:
            # Any number will do as long as nothing else on this database uses it; freed at the transaction's end.
            connection.execute(text("SELECT pg_advisory_xact_lock(4362780117)"))
            yield connection
