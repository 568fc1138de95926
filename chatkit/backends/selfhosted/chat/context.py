"""The context of a request of the chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from chatkit.identity.user import Primitive
from chatkit.types import ThreadMetadata
from chatkit.web.buffer import Buffer


@dataclass(frozen=True)
class ChatContext:
    """What the chat knows of the request that it handles."""

    user: str
    """``User.id``"""
    buffer: Buffer = field(compare=False)
    """Where the response goes."""
    agent: str | None = None
    """The name of the agent that this user is for; ``None`` is everybody else's."""
    claims: Mapping[str, Primitive] = field(default_factory=dict)
    """What the agent may know of a user who is signed in (``CHATKIT_STATE_CLAIMS``)."""
    started: Callable[[], None] = field(default=lambda: None, compare=False)
    """To be called when the processor has done what starting this request takes."""
    drafts: set[str] = field(default_factory=set)
    """The ids of messages that have been begun in this request's turn."""
    threads: dict[str, list[tuple[ThreadMetadata, ThreadMetadata]]] = field(default_factory=dict)
    """By id, each object that this request has for a thread, with what was stored when it was last loaded or saved.

    A thread that this request has begun and that is not stored yet has none."""


current: ContextVar[ChatContext | None] = ContextVar("current", default=None)
"""The context of the request that the current task handles, for what is called without it."""
