"""What a backend does for the rest of the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from flask import Blueprint

from chatkit.identity.user import User


@dataclass(frozen=True)
class Session:
    """A session that was issued, on its way to the caller.

    ``client_secret`` is for the caller alone: no log, no database, no ``repr`` holds it.
    """

    session_id: str
    client_secret: str = field(repr=False)
    expires_at: datetime
    """In UTC, at most 600 s from now."""


class Backend(Protocol):
    """Issues sessions and ends them, and may serve the chat that they open."""

    @property
    def blueprints(self) -> Sequence[Blueprint]:
        """What it serves besides the sessions endpoint."""

    @property
    def background(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """Coroutine functions that run as long as a process serves."""

    def issue(self, user: User) -> Session:
        """A new session for ``user``.

        Raises:
            chatkit.web.errors.ApiError: a row of the contract's table.
        """

    def end(self, session_id: str, user: User) -> None:
        """End a session of ``user``, so that its secret opens nothing any more. One that has expired stays as it is.

        Raises:
            chatkit.web.errors.ApiError: ``NotFound`` where it is not this user's; else a row of the contract's table.
        """

    def take_over(self, visitor: User, user: User) -> bool:
        """Give what ``visitor`` has to ``user``, who has signed in with the same browser. Whether it was done.

        Raises:
            chatkit.web.errors.ApiError: a row of the contract's table; nothing has changed.
        """

    def missing(self) -> list[str]:
        """What keeps this backend from issuing, each by the name of its setting; empty when it is ready. May block."""
