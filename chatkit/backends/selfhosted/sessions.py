"""Sessions that are issued here. They live in SQL, so that any process knows them."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, Delete, Engine, bindparam, case, delete, insert, or_, select, update

from chatkit.backends.interface import Session
from chatkit.backends.selfhosted.database import engine as database
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE
from chatkit.backends.selfhosted.database.tables import AttachmentRow, ItemRow, SessionRow, ThreadRow
from chatkit.identity.user import Primitive, User
from chatkit.web import errors

log = logging.getLogger(__name__)

KEEP_EXPIRED_SECONDS = 3600  # so that a page that was asleep is told "expired", which means: refresh
THREADS_AT_ONCE = 500  # a database takes no endless list
HIDDEN = ("hidden_context_item", "sdk_hidden_context")  # types of items that a model is given and nobody sees
PURGE_THREADS_EVERY_SECONDS = 3600
SECONDS_A_DAY = 86400
PURGE_BATCH = 200  # rows; a batch holds its locks for some milliseconds
PURGE_BATCHES = 100  # of one call of maintain(), so that it ends
PURGE_PAUSE_SECONDS = 0.05  # between two batches, for other writers


# Built once; building a statement takes longer than running it.
_INSERT_SESSION = insert(SessionRow)
_SELECT_SESSION = select(SessionRow.id, SessionRow.user_id, SessionRow.expires_at, SessionRow.agent, SessionRow.claims).where(
    SessionRow.secret_hash == bindparam("hash")
)
_now: Any = bindparam("now")
_END_SESSION = (
    update(SessionRow)
    .where(SessionRow.id == bindparam("session"), SessionRow.user_id == bindparam("owner"))
    .values(expires_at=case((SessionRow.expires_at > _now, _now), else_=SessionRow.expires_at))
)
_HAND_OVER_THREADS = update(ThreadRow).where(ThreadRow.user_id == bindparam("visitor")).returning(ThreadRow.id)  # items follow
_HAND_OVER_ATTACHMENTS = update(AttachmentRow).where(AttachmentRow.user_id == bindparam("visitor"))
# Not by a JSON function: PostgreSQL's refuse the \u0000 that a user may have written.
_SELECT_PERHAPS_HIDDEN = select(ItemRow.position, ItemRow.data).where(
    ItemRow.thread_id.in_(bindparam("threads", expanding=True)),
    or_(*(ItemRow.data.contains(f'"type":"{type_}"', autoescape=True) for type_ in HIDDEN)),
)
_DELETE_ITEM = delete(ItemRow).where(ItemRow.position == bindparam("item"))
_END_SESSIONS = (
    update(SessionRow).where(SessionRow.user_id == bindparam("visitor"), SessionRow.expires_at > _now).values(expires_at=_now)
)
# Rows that another process is deleting, or that a request is using, are left to it. SQLite has one writer, and locks no rows.
_DELETE_EXPIRED = delete(SessionRow).where(
    SessionRow.id.in_(
        select(SessionRow.id)
        .where(SessionRow.expires_at < bindparam("oldest"))
        .limit(PURGE_BATCH)
        .with_for_update(skip_locked=True)
    )
)
_DELETE_UNUSED = delete(ThreadRow).where(  # items and attachments follow
    ThreadRow.position.in_(
        select(ThreadRow.position)
        .where(ThreadRow.used_at < bindparam("oldest"))
        .limit(PURGE_BATCH)
        .with_for_update(skip_locked=True)
    )
)


@contextmanager
def _unless_unavailable(what_failed: str) -> Iterator[None]:
    try:
        yield
    except UNAVAILABLE as error:
        raise errors.DatabaseUnavailable(what_failed) from error


@dataclass(frozen=True)
class LiveSession:
    """What a secret that is still good stands for."""

    session_id: str
    user: str
    """``User.id``"""
    expires_at: datetime
    agent: str | None
    claims: Mapping[str, Primitive]


class SessionStore:
    """Issues sessions, ends them, and finds the live session that a secret opens.

    Args:
        engine: the database.
        ttl: the life of a session, in seconds.
        retention_days: after which threads that nobody has used are deleted.
    """

    def __init__(self, engine: Engine, ttl: int, retention_days: int | None = None) -> None:
        self.engine = engine
        self._ttl = ttl
        self._retention_days = retention_days
        self._next_thread_purge = 0.0
        self._file = database.file_identity(engine)
        self._file_lock = threading.Lock()

    def missing(self) -> list[str]:
        """See ``Backend.missing``. Stores a session and takes it back, because a database that only reads is not enough."""
        row = {
            "id": f"probe_{secrets.token_urlsafe(24)}",
            "secret_hash": secrets.token_bytes(32),
            "user_id": "",
            "expires_at": 0,
        }
        try:
            self._reopen_replaced_file()
            with self.engine.connect() as connection:
                connection.execute(_INSERT_SESSION, {**row, "agent": None, "claims": None})
                connection.rollback()
        except (*UNAVAILABLE, CommandError, OSError) as error:
            return [f"DATABASE_URL ({database.describe(error)})"]
        return []

    def maintain(self) -> None:
        """Delete what is no longer needed, and notice a SQLite file that was deleted. To be called about every 30 s.

        Safe to run in several processes at once. Errors are logged, and the next call tries again.
        """
        try:
            self._reopen_replaced_file()
            self._purge(_DELETE_EXPIRED, time.time() - KEEP_EXPIRED_SECONDS)
            days = self._retention_days
            if days is not None and time.monotonic() >= self._next_thread_purge:
                done = self._purge(_DELETE_UNUSED, time.time() - days * SECONDS_A_DAY)
                self._next_thread_purge = time.monotonic() + (PURGE_THREADS_EVERY_SECONDS if done else 0)
        except (*UNAVAILABLE, CommandError, OSError) as error:
            log.error("Maintenance of the database failed: %s", database.describe(error))
        except Exception as error:  # noqa: BLE001  nobody handles what a timer's call raises
            log.error("Maintenance of the database failed (%s)", type(error).__name__)

    def issue(self, user: User) -> Session:
        """See ``Backend.issue``.

        ``client_secret`` is ``cs_`` and 43 characters that carry 256 random bits, ``session_id`` is ``ses_`` and 32 with 192.
        """
        secret = f"cs_{secrets.token_urlsafe(32)}"
        session_id = f"ses_{secrets.token_urlsafe(24)}"
        expires_at = int(time.time()) + self._ttl
        row = {
            "id": session_id,
            "secret_hash": _hash(secret),
            "user_id": user.id,
            "expires_at": expires_at,
            "agent": user.agent,
            "claims": json.dumps(dict(user.claims)) if user.claims else None,
        }
        with _unless_unavailable("a session could not be stored"), self.engine.begin() as connection:
            connection.execute(_INSERT_SESSION, row)
        return Session(session_id=session_id, client_secret=secret, expires_at=datetime.fromtimestamp(expires_at, UTC))

    def end(self, session_id: str, user: User) -> None:
        """See ``Backend.end``. A response that has begun is finished."""
        values = {"session": session_id, "owner": user.id, "now": int(time.time())}
        with _unless_unavailable("a session could not be ended"), self.engine.begin() as connection:
            found = connection.execute(_END_SESSION, values).rowcount
        if not found:
            raise errors.NotFound("no such session of this user")

    def find(self, client_secret: str) -> LiveSession:
        """The live session that ``client_secret`` opens.

        Raises:
            ClientSecretUnknown: never issued here, or expired long ago.
            ClientSecretExpired: issued here, and over.
            DatabaseUnavailable: when nobody can tell.
        """
        with _unless_unavailable("a session could not be looked up"), self.engine.connect() as connection:
            row = connection.execute(_SELECT_SESSION, {"hash": _hash(client_secret)}).one_or_none()
        if row is None:
            raise errors.ClientSecretUnknown("no session has this secret")
        if row.expires_at <= time.time():
            raise errors.ClientSecretExpired(f"session {row.id} is over")
        claims = json.loads(row.claims) if row.claims else {}
        return LiveSession(row.id, row.user_id, datetime.fromtimestamp(row.expires_at, UTC), row.agent, claims)

    def hand_over(self, visitor: User, user: User) -> None:
        """Give the conversations of ``visitor`` to ``user``, and end the visitor's sessions, all or nothing.

        Hidden items are deleted. Whoever planted the visitor's cookie may have planted instructions in them, which the user
        could not see. An answer that is on its way in one of the conversations ends with an error.

        Raises:
            DatabaseUnavailable: nothing has changed.
        """
        of_visitor, of_user = {"visitor": visitor.id, "now": int(time.time())}, {"user_id": user.id}
        with _unless_unavailable("conversations could not be handed over"), self.engine.begin() as connection:
            moved = connection.execute(_HAND_OVER_THREADS.values(of_user), of_visitor).scalars().all()
            connection.execute(_HAND_OVER_ATTACHMENTS.values(of_user), of_visitor)
            for start in range(0, len(moved), THREADS_AT_ONCE):
                _delete_hidden(connection, moved[start : start + THREADS_AT_ONCE])
            connection.execute(_END_SESSIONS, of_visitor)

    def _purge(self, statement: Delete, oldest: float) -> bool:
        """Delete in batches, so that nobody waits long for a lock. Whether nothing is left."""
        for _ in range(PURGE_BATCHES):
            with self.engine.begin() as connection:
                deleted = connection.execute(statement, {"oldest": oldest}).rowcount
            if deleted < PURGE_BATCH:
                return True
            time.sleep(PURGE_PAUSE_SECONDS)
        return False

    def _reopen_replaced_file(self) -> None:
        """Open a SQLite file anew that was deleted or replaced: its open connections still use the old one."""
        with self._file_lock:
            if self._file is None or database.file_identity(self.engine) == self._file:
                return
            log.error("The SQLite file %s was deleted or replaced; opening it anew", self.engine.url.database)
            database.migrate(self.engine.url, database.WAIT_SECONDS)
            self.engine.dispose()
            self._file = database.file_identity(self.engine)


def _delete_hidden(connection: Connection, threads: Sequence[str]) -> None:
    """Delete the items of ``threads`` that only a model sees."""
    # Not all at once: a visitor may have stored a lot.
    found = connection.execute(_SELECT_PERHAPS_HIDDEN, {"threads": threads}, execution_options={"yield_per": 100})
    if hidden := [{"item": row.position} for row in found if json.loads(row.data).get("type") in HIDDEN]:
        connection.execute(_DELETE_ITEM, hidden)


def _hash(secret: str) -> bytes:
    # A plain hash will do: a secret of 256 random bits can't be guessed, so nothing has to slow a guess down.
    return hashlib.sha256(secret.encode()).digest()
