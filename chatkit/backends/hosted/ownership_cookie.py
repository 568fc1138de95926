"""The owners of hosted sessions, in the signed cookie of the browser that a session was issued to.

OpenAI does not name the owner of a session before ending it, and the hosted backend has no database.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode

from flask import session

from chatkit.identity.user import User

MAX_SESSIONS = 10  # the newest; a session lasts ten minutes at most
_KEY = "minted"  # in the cookie; renaming it would lose the owners of live sessions


def add(user: User, session_id: str) -> None:
    """Record in the response's cookie that ``user`` owns the session."""
    session[_KEY] = [*session.get(_KEY, []), _digest(user, session_id)][-MAX_SESSIONS:]
    session.permanent = True


def contains(user: User, session_id: str) -> bool:
    """Whether the request's cookie records that ``user`` owns the session."""
    return _digest(user, session_id) in session.get(_KEY, [])


def _digest(user: User, session_id: str) -> str:
    # The cookie is signed; the hash only makes the entries short.
    digest = hashlib.sha256(f"{session_id} {user.id}".encode()).digest()
    return urlsafe_b64encode(digest[:15]).decode()
