"""The hosted backend: OpenAI issues the sessions and serves the chat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from flask import Blueprint

from chatkit.backends.hosted import ownership_cookie
from chatkit.backends.hosted.sessions_api import SessionsApi
from chatkit.backends.interface import Session
from chatkit.identity.user import User
from chatkit.settings import Settings
from chatkit.web.errors import NotFound


class HostedBackend:
    """See ``Backend``."""

    blueprints: Sequence[Blueprint] = ()
    background: Sequence[Callable[[], Awaitable[None]]] = ()

    def __init__(self, settings: Settings) -> None:
        self._api = SessionsApi(settings)

    def issue(self, user: User) -> Session:
        session = self._api.issue(user)
        ownership_cookie.add(user, session.session_id)
        return session

    def end(self, session_id: str, user: User) -> None:
        # OpenAI names the owner of a session only after ending it.
        if not ownership_cookie.contains(user, session_id):
            raise NotFound("no such session of this user")
        self._api.end(session_id, user)

    def take_over(self, visitor: User, user: User) -> bool:
        return False  # OpenAI has the conversations, and can't change their user

    def is_upload(self, path: str, query: str) -> bool:
        return False

    def missing(self) -> list[str]:
        return self._api.missing()
