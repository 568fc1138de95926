"""Whose a hosted session is: the signed cookie of whoever had it minted knows, because nothing else does.

OpenAI does not say whose a session is before it has ended it, and the hosted backend has no database. A cookie that was made
for one user proves nothing for another.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode

from flask import session

from chatkit.identity.user import User

KEPT = 10  # of the newest; a session lives ten minutes at most


def remember(user: User, session_id: str) -> None:
    """Note, in the cookie of the current request's answer, that this session is this user's."""
    session["minted"] = [*session.get("minted", []), _mark(user, session_id)][-KEPT:]
    session.permanent = True


def is_remembered(user: User, session_id: str) -> bool:
    """Whether the current request's cookie says so."""
    return _mark(user, session_id) in session.get("minted", [])


def _mark(user: User, session_id: str) -> str:
    # The cookie's signature makes it a proof; the hash makes it short.
    digest = hashlib.sha256(f"{session_id} {user.id}".encode()).digest()
    return urlsafe_b64encode(digest[:15]).decode()
