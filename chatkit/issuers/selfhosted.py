"""Sessions minted here, for the chat that this service serves itself. They live in SQL, so that any process knows them."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, case, delete, insert, or_, select, text, update

from chatkit import problems
from chatkit.database import UNAVAILABLE, open_database
from chatkit.issuers import Session
from chatkit.settings import MAX_SESSION_TTL, Settings
from chatkit.tables import AttachmentRow, ItemRow, SessionRow, ThreadRow
from chatkit.users import Primitive, User

KEEP_EXPIRED_SECONDS = 3600  # so that a page that was asleep is told "expired", which means: refresh
PURGE_EVERY_SECONDS = 60
THREADS_AT_ONCE = 500  # a database takes no endless list
HIDDEN = ("hidden_context_item", "sdk_hidden_context")  # types of items that a model is given and nobody sees


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


@contextmanager
def _unless_unavailable(what_failed: str) -> Iterator[None]:
    try:
        yield
    except UNAVAILABLE as error:
        raise problems.DatabaseUnavailable(what_failed) from error


@dataclass(frozen=True)
class LiveSession:
    """What a secret that is still good stands for."""

    session_id: str
    user: str
    """``User.id``"""
    expires_at: datetime
    agent: str | None
    claims: Mapping[str, Primitive]


class SelfhostedIssuer:
    """Mints sessions and knows, given a secret, whose live session it opens."""

    knows_owners = True

    def __init__(self, engine: Engine, ttl: int) -> None:
        self.engine = engine
        self._ttl = ttl
        self._next_purge = 0.0

    @classmethod
    def open(cls, settings: Settings) -> SelfhostedIssuer:
        """An issuer on the configured database, its schema up to date.

        Raises:
            SettingsError: when that can't be had.
        """
        return cls(open_database(settings.database_url), settings.session_ttl or MAX_SESSION_TTL)

    def missing(self) -> list[str]:
        """See ``Issuer.missing``."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except UNAVAILABLE:
            return ["DATABASE_URL (the database does not answer)"]
        return []

    def issue(self, user: User) -> Session:
        """See ``Issuer.issue``.

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
            self._purge(connection)
        return Session(session_id=session_id, client_secret=secret, expires_at=datetime.fromtimestamp(expires_at, UTC))

    def end(self, session_id: str, user: User) -> None:
        """See ``Issuer.end``. An answer that is on its way goes on to its end."""
        values = {"session": session_id, "owner": user.id, "now": int(time.time())}
        with _unless_unavailable("a session could not be ended"), self.engine.begin() as connection:
            found = connection.execute(_END_SESSION, values).rowcount
        if not found:
            raise problems.NotFound("no such session of this user")

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
            raise problems.ClientSecretUnknown("no session has this secret")
        if row.expires_at <= time.time():
            raise problems.ClientSecretExpired(f"session {row.id} is over")
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

    def _purge(self, connection: Connection) -> None:
        """Delete what expired a while ago; at most once a minute, in passing, so that no timer is needed."""
        if time.monotonic() < self._next_purge:
            return
        self._next_purge = time.monotonic() + PURGE_EVERY_SECONDS
        connection.execute(delete(SessionRow).where(SessionRow.expires_at < time.time() - KEEP_EXPIRED_SECONDS))


def _delete_hidden(connection: Connection, threads: Sequence[str]) -> None:
    """Delete the items of ``threads`` that only a model sees."""
    # Not all at once: a visitor may have stored a lot.
    found = connection.execute(_SELECT_PERHAPS_HIDDEN, {"threads": threads}, execution_options={"yield_per": 100})
    if hidden := [{"item": row.position} for row in found if json.loads(row.data).get("type") in HIDDEN]:
        connection.execute(_DELETE_ITEM, hidden)


def _hash(secret: str) -> bytes:
    # A plain hash will do: a secret of 256 random bits can't be guessed, so nothing has to slow a guess down.
    return hashlib.sha256(secret.encode()).digest()
