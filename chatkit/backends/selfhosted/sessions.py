"""Sessions of the self-hosted backend, stored in the database that all processes share."""

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
from datetime import UTC, date, datetime
from typing import Any

from alembic.util import CommandError
from sqlalchemy import ColumnElement, Connection, Delete, Engine, bindparam, case, delete, exists, insert, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute

from chatkit.backends.interface import Session
from chatkit.backends.selfhosted.database import engine as database
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE
from chatkit.backends.selfhosted.database.tables import (
    ActiveRunRow,
    AttachmentRow,
    ImageRow,
    ItemRow,
    PausedRunRow,
    SessionRow,
    ThreadRow,
    UsageRow,
)
from chatkit.identity.user import Primitive, User
from chatkit.web import errors

log = logging.getLogger(__name__)

# A page that was asleep gets "expired", which tells it to refresh. A response that goes on stores its usage until then.
KEEP_EXPIRED_SECONDS = 3600
KEEP_INTERRUPTED_SECONDS = 86400  # so that a page can offer a retry; no run lasts that long
KEEP_UNSENT_SECONDS = 86400  # for an attachment whose message the user has not sent yet
THREAD_BATCH = 20  # in a statement of a transfer, which changes all their items and is limited to WAIT_SECONDS
HIDDEN_ITEM_TYPES = ("hidden_context_item", "sdk_hidden_context")  # sent to the model, never shown to the user
REFUSED = "A guardrail refused the user's message before this, so it was not answered. Do not answer it."
"""The content of the hidden item after a message that an input guardrail refused. See ``history``."""
THREAD_PURGE_INTERVAL_SECONDS = 3600
SECONDS_PER_DAY = 86400
PURGE_BATCH = 200  # rows; a batch holds its locks for a few milliseconds
PURGE_FILES = 10  # images or attachments in a batch; one has some megabytes
PURGE_BATCHES = 100  # per call of maintain(), to bound its duration
PURGE_PAUSE_SECONDS = 0.05  # between batches, to let other writers in

# Built once: building a statement takes longer than running it.
_INSERT_SESSION = insert(SessionRow)
_DELETE_SESSION = delete(SessionRow).where(SessionRow.id == bindparam("session"))
_SELECT_SESSION = select(SessionRow.id, SessionRow.user_id, SessionRow.expires_at, SessionRow.agent, SessionRow.claims).where(
    SessionRow.secret_hash == bindparam("hash")
)
LOCK_SESSION = select(SessionRow.expires_at).where(SessionRow.id == bindparam("session")).with_for_update(read=True)
"""Selects when a session expires (Unix seconds); nothing if it was deleted. Until the commit, the session stays as it is.

``users delete`` deletes sessions first, and a transfer of conversations ends them first. What a transaction stores for a
session that it has locked is deleted or transferred after it. On SQLite execute this in or after a write, which is what begins
the transaction.
"""
_now: Any = bindparam("now")
_END_SESSION = (
    update(SessionRow)
    .where(SessionRow.id == bindparam("session"), SessionRow.user_id == bindparam("owner"))
    .values(expires_at=case((SessionRow.expires_at > _now, _now), else_=SessionRow.expires_at))
)
_visitors_thread = ThreadRow.user_id == bindparam("visitor")
_batch = select(ThreadRow.position).where(_visitors_thread).limit(bindparam("batch"))
# Items cascade.
_TRANSFER_THREADS = update(ThreadRow).where(_visitors_thread, ThreadRow.position.in_(_batch)).returning(ThreadRow.id)
# Those of threads cascade.
_TRANSFER_UNSENT = update(AttachmentRow).where(AttachmentRow.user_id == bindparam("visitor"), AttachmentRow.thread_id.is_(None))
DETACHED: dict[str, Any] = {"thread_id": None, "item_id": None, "created_at": 0}
"""The columns of an attachment whose message is gone. ``maintain`` deletes it: that of many at once could take seconds."""
_DETACH_FILES = (
    update(AttachmentRow)
    .where(
        AttachmentRow.thread_id.in_(bindparam("threads", expanding=True)),
        AttachmentRow.data.contains('"type":"file"', autoescape=True),
    )
    .values(DETACHED)
)
# A text search, because PostgreSQL's JSON functions reject the \u0000 that a user may have sent.
_SELECT_HIDDEN_CANDIDATES = select(ItemRow.position, ItemRow.data).where(
    ItemRow.thread_id.in_(bindparam("threads", expanding=True)),
    or_(
        *(
            ItemRow.data.contains(f'"type":"{type_}"', autoescape=True)
            for type_ in (*HIDDEN_ITEM_TYPES, "client_tool_call", "input_tag")
        )
    ),
)
_DELETE_PAUSED_RUNS = delete(PausedRunRow).where(PausedRunRow.thread_id.in_(bindparam("threads", expanding=True)))
_INTERRUPT_RUNS = (
    update(ActiveRunRow).where(ActiveRunRow.thread_id.in_(bindparam("threads", expanding=True))).values(heartbeat=0)
)
_DELETE_ITEM = delete(ItemRow).where(ItemRow.position == bindparam("item"))
_UPDATE_ITEM = update(ItemRow).where(ItemRow.position == bindparam("item")).values(data=bindparam("new_data"))
_END_SESSIONS = (
    update(SessionRow).where(SessionRow.user_id == bindparam("visitor"), SessionRow.expires_at > _now).values(expires_at=_now)
)


def _delete_batch(key: InstrumentedAttribute[Any], is_old: ColumnElement[bool], rows: int = PURGE_BATCH) -> Delete:
    """Delete some of the rows that are old.

    Skips rows that another process is deleting or a request is using. SQLite ignores this: it has one writer and no row locks.
    """
    old = select(key).where(is_old).limit(rows).with_for_update(skip_locked=True).correlate(None)
    return delete(key.class_).where(key.in_(old))


_oldest: Any = bindparam("oldest")
_DELETE_EXPIRED_SESSIONS = _delete_batch(SessionRow.id, SessionRow.expires_at < _oldest)
_DELETE_OLD_USAGE = _delete_batch(UsageRow.position, UsageRow.day < _oldest)
_DELETE_OLD_RUNS = _delete_batch(ActiveRunRow.id, ActiveRunRow.started_at < _oldest)  # runs that end normally delete their rows
# What is in an unused thread is deleted before it, because a statement that cascades to all of it could take long, and SQLite
# has one writer at a time.
_unused_thread = ThreadRow.used_at < _oldest
_items_thread = (ItemRow.thread_id == ThreadRow.id) & (ItemRow.user_id == ThreadRow.user_id)
_images_thread = (ImageRow.thread_id == ThreadRow.id) & (ImageRow.user_id == ThreadRow.user_id)
_attachments_thread = (AttachmentRow.thread_id == ThreadRow.id) & (AttachmentRow.user_id == ThreadRow.user_id)
_DELETE_UNUSED_ITEMS = _delete_batch(ItemRow.position, _unused_thread & _items_thread)
_DELETE_UNUSED_IMAGES = _delete_batch(ImageRow.id, _unused_thread & _images_thread, PURGE_FILES)
_DELETE_UNUSED_ATTACHMENTS = _delete_batch(AttachmentRow.id, _unused_thread & _attachments_thread, PURGE_FILES)
_DELETE_UNSENT_ATTACHMENTS = _delete_batch(
    AttachmentRow.id, AttachmentRow.item_id.is_(None) & (AttachmentRow.created_at < _oldest), PURGE_FILES
)
_DELETE_UNUSED_THREADS = _delete_batch(
    ThreadRow.position,
    _unused_thread & ~exists().where(_items_thread) & ~exists().where(_images_thread) & ~exists().where(_attachments_thread),
)


def is_session_deleted(connection: Connection, session_id: str | None) -> bool:
    """Return whether a session was deleted, and lock it otherwise, see ``LOCK_SESSION``. Without an id there is none."""
    return bool(session_id) and connection.execute(LOCK_SESSION, {"session": session_id}).one_or_none() is None


def require_session(connection: Connection, session_id: str) -> None:
    """Raise ``ClientSecretUnknown`` if ``is_session_deleted``."""
    if is_session_deleted(connection, session_id):
        raise errors.ClientSecretUnknown("the session was deleted, with all that its user had")


@contextmanager
def _database_errors(detail: str) -> Iterator[None]:
    """Raise ``DatabaseUnavailable`` if the database fails."""
    try:
        yield
    except UNAVAILABLE as error:
        raise database.unavailable(detail, error) from error


@dataclass(frozen=True)
class LiveSession:
    session_id: str
    user: str
    """``User.id``"""
    agent: str | None
    claims: Mapping[str, Primitive]


class SessionStore:
    """Issues, looks up and ends sessions.

    Args:
        engine: the database.
        ttl: the lifetime of a session, in seconds.
        retention_days: the number of days after which unused threads and records of usage are deleted; ``None`` keeps them.
    """

    def __init__(self, engine: Engine, ttl: int, retention_days: int | None = None) -> None:
        self.engine = engine
        self._ttl = ttl
        self._retention_days = retention_days
        self._next_thread_purge = 0.0
        self._file = database.file_identity(engine)
        self._file_lock = threading.Lock()

    def missing(self) -> list[str]:
        """See ``Backend.missing``. Stores a session and deletes it, because a database that is only readable is not enough.

        One transaction does both, so no one sees the session. It is committed, because SQLite writes to the disk only then.
        """
        row = {
            "id": f"probe_{secrets.token_urlsafe(24)}",
            "secret_hash": secrets.token_bytes(32),
            "user_id": "",
            "expires_at": 0,
        }
        try:
            self._reopen_replaced_file()
            with self.engine.begin() as connection:
                connection.execute(_INSERT_SESSION, {**row, "agent": None, "claims": None})
                connection.execute(_DELETE_SESSION, {"session": row["id"]})
        except (*UNAVAILABLE, CommandError, OSError) as error:
            return [f"DATABASE_URL ({database.describe(error)})"]
        return []

    def maintain(self) -> None:
        """Delete what is expired, unused or old, and reopen a SQLite file that was replaced. Call about every 30 s.

        Safe to run in several processes at once. Errors are logged; the next call tries again.
        """
        try:
            self._reopen_replaced_file()
            self._purge(_DELETE_EXPIRED_SESSIONS, time.time() - KEEP_EXPIRED_SECONDS)
            self._purge(_DELETE_OLD_RUNS, time.time() - KEEP_INTERRUPTED_SECONDS)
            self._purge(_DELETE_UNSENT_ATTACHMENTS, time.time() - KEEP_UNSENT_SECONDS, PURGE_FILES)
            days = self._retention_days
            if days is not None and time.monotonic() >= self._next_thread_purge:
                oldest = time.time() - days * SECONDS_PER_DAY
                done = self._purge(_DELETE_UNUSED_IMAGES, oldest, PURGE_FILES)
                done &= self._purge(_DELETE_UNUSED_ATTACHMENTS, oldest, PURGE_FILES)
                done &= self._purge(_DELETE_UNUSED_ITEMS, oldest)
                done &= self._purge(_DELETE_UNUSED_THREADS, oldest)
                done &= self._purge(_DELETE_OLD_USAGE, datetime.fromtimestamp(oldest, UTC).date())
                self._next_thread_purge = time.monotonic() + (THREAD_PURGE_INTERVAL_SECONDS if done else 0)
        except (*UNAVAILABLE, CommandError, OSError) as error:
            log.error("Maintenance of the database failed: %s", database.describe(error))
        except Exception as error:  # noqa: BLE001  an exception would end the maintenance task
            log.error("Maintenance of the database failed (%s)", type(error).__name__)

    def issue(self, user: User) -> Session:
        """See ``Backend.issue``.

        ``client_secret`` is ``cs_`` and 43 characters (256 random bits); ``session_id`` is ``ses_`` and 32 (192 bits).
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
        with _database_errors("a session could not be stored"), self.engine.begin() as connection:
            connection.execute(_INSERT_SESSION, row)
        return Session(session_id=session_id, client_secret=secret, expires_at=datetime.fromtimestamp(expires_at, UTC))

    def end(self, session_id: str, user: User) -> None:
        """See ``Backend.end``. A response that has started is completed."""
        values = {"session": session_id, "owner": user.id, "now": int(time.time())}
        with _database_errors("a session could not be ended"), self.engine.begin() as connection:
            found = connection.execute(_END_SESSION, values).rowcount
        if not found:
            raise errors.NotFound("no such session of this user")

    def find(self, client_secret: str) -> LiveSession:
        """Return the live session that ``client_secret`` belongs to.

        Raises:
            ClientSecretUnknown: never issued here, or expired more than ``KEEP_EXPIRED_SECONDS`` ago.
            ClientSecretExpired: the session has expired or was ended.
            DatabaseUnavailable: the database can't be queried.
        """
        with _database_errors("a session could not be looked up"), self.engine.connect() as connection:
            row = connection.execute(_SELECT_SESSION, {"hash": _hash(client_secret)}).one_or_none()
        if row is None:
            raise errors.ClientSecretUnknown("no session has this secret")
        if row.expires_at <= time.time():
            raise errors.ClientSecretExpired(f"session {row.id} has expired")
        claims = json.loads(row.claims) if row.claims else {}
        return LiveSession(row.id, row.user_id, row.agent, claims)

    def transfer_conversations(self, visitor: User, user: User) -> None:
        """Transfer the conversations of ``visitor`` to ``user`` and end the visitor's sessions, in one transaction.

        What only the model sees is deleted: hidden items, outputs of client tools, the data of mentions, the contents of files
        that are no images, and paused runs. An attacker who planted the visitor's cookie may have planted instructions there.
        Marks of refused messages stay. A response that is in progress in one of the conversations is interrupted. The threads
        count as used, so that a later import does not bring anything back.

        Raises:
            DatabaseUnavailable: nothing has changed.
        """
        now = int(time.time())
        params, new_owner = {"visitor": visitor.id, "now": now, "batch": THREAD_BATCH}, {"user_id": user.id}
        with _database_errors("conversations could not be transferred"), self.engine.begin() as connection:
            connection.execute(_END_SESSIONS, params)  # first: a session that is locked is beginning a conversation
            transfer = _TRANSFER_THREADS.values(**new_owner, used_at=now)
            while batch := connection.execute(transfer, params).scalars().all():
                _delete_what_is_hidden(connection, batch)
                connection.execute(_DETACH_FILES, {"threads": batch})
                connection.execute(_DELETE_PAUSED_RUNS, {"threads": batch})
                connection.execute(_INTERRUPT_RUNS, {"threads": batch})
            # After the threads, because a message locks its thread and then its attachments.
            connection.execute(_TRANSFER_UNSENT.values(new_owner), params)

    def _purge(self, statement: Delete, oldest: float | date, batch: int = PURGE_BATCH) -> bool:
        """Delete in batches, so that other writers do not wait long for a lock. Return whether all rows are deleted."""
        for _ in range(PURGE_BATCHES):
            with self.engine.begin() as connection:
                deleted = connection.execute(statement, {"oldest": oldest}).rowcount
            if deleted < batch:
                return True
            time.sleep(PURGE_PAUSE_SECONDS)
        return False

    def _reopen_replaced_file(self) -> None:
        """Reopen a SQLite file that was deleted or replaced: open connections still use the old file."""
        with self._file_lock:
            if self._file is None or database.file_identity(self.engine) == self._file:
                return
            log.error("The SQLite file %s was deleted or replaced; opening it again", self.engine.url.database)
            database.migrate(self.engine.url, database.WAIT_SECONDS)
            self.engine.dispose()
            self._file = database.file_identity(self.engine)


def _delete_what_is_hidden(connection: Connection, threads: Sequence[str]) -> None:
    """Delete what the model gets from the items of ``threads`` and the page does not show."""
    deleted, updated = [], []
    # Streamed, because a visitor may have stored many items.
    for row in connection.execute(_SELECT_HIDDEN_CANDIDATES, {"threads": threads}, execution_options={"yield_per": 100}):
        shown = shown_part(row.data)
        if shown is None:
            deleted.append({"item": row.position})
        elif shown != row.data:
            updated.append({"item": row.position, "new_data": shown})
    if deleted:
        connection.execute(_DELETE_ITEM, deleted)
    if updated:
        connection.execute(_UPDATE_ITEM, updated)


def shown_part(data: str) -> str | None:
    """Return the part of a stored item that the page shows, which may be all of ``data``, or ``None`` if that is nothing."""
    item = json.loads(data)
    if _is_hidden(item):
        return None
    if item.get("type") == "user_message":
        shown = {**item, "content": [_without_data(part) for part in item["content"]]}
        if shown != item:
            return json.dumps(shown, separators=(",", ":"))
    return data


def _is_hidden(item: dict[str, Any]) -> bool:
    """Return whether an item may have instructions that the page does not show. The text of a refusal is fixed."""
    if item.get("type") == "client_tool_call":
        return bool(item.get("status") != "pending")
    return item.get("type") in HIDDEN_ITEM_TYPES and item.get("content") != REFUSED


def _without_data(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a user message, of a mention only its text."""
    return {**part, "id": part["text"], "data": {}} if part["type"] == "input_tag" else part


def _hash(secret: str) -> bytes:
    # A fast hash is enough: 256 random bits can't be guessed.
    return hashlib.sha256(secret.encode()).digest()
