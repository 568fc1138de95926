"""The interface of the backends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from flask import Blueprint

from chatkit.identity.user import User


@dataclass(frozen=True)
class Session:
    """An issued session. ``client_secret`` is sent to the caller only: never logged, never stored, not in ``repr``."""

    session_id: str
    client_secret: str = field(repr=False)
    expires_at: datetime
    """In UTC, at most 600 s after issuing."""


class Backend(Protocol):
    """Issues and ends sessions, and may serve the chat."""

    @property
    def blueprints(self) -> Sequence[Blueprint]:
        """Further blueprints to register."""

    @property
    def background(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """Coroutine functions that run as long as a process serves."""

    def issue(self, user: User) -> Session:
        """Issue a session to ``user``.

        Raises:
            chatkit.web.errors.ApiError: one of the contract's errors.
        """

    def end(self, session_id: str, user: User) -> None:
        """End a session of ``user`` and invalidate its secret. Does nothing if it has expired.

        Raises:
            chatkit.web.errors.ApiError: ``NotFound`` if it is not this user's, or another of the contract's errors.
        """

    def take_over(self, visitor: User, user: User) -> bool:
        """Move the conversations of ``visitor`` to ``user``, who signed in with the same browser. Return whether it was done.

        Raises:
            chatkit.web.errors.ApiError: one of the contract's errors; nothing has changed.
        """

    def is_upload(self, path: str, query: str) -> bool:
        """Return whether a URL is valid for the upload of a file. Does not block.

        Args:
            path: of the URL.
            query: its query string.
        """

    def missing(self) -> list[str]:
        """Return the names of the settings or services that are missing to issue sessions. May block."""
