"""The context of a chat request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from requests.structures import CaseInsensitiveDict

from chatkit.backends.selfhosted.chat.usage import Meter
from chatkit.identity.user import Primitive
from chatkit.types import AssistantMessageItem, ThreadItem, ThreadMetadata
from chatkit.web.buffer import Buffer


@dataclass(frozen=True)
class ChatContext:
    """What servers and tools know about a request: ``user``, ``claims``, ``headers`` and ``metadata``. The rest is internal."""

    user: str
    """``User.id``"""
    buffer: Buffer = field(compare=False)
    """Receives the response."""
    agent: str | None = None
    """The name of the agent for this user; ``None`` selects the default."""
    claims: Mapping[str, Primitive] = field(default_factory=dict)
    """The claims of a signed-in user that are passed to the agent (``CHATKIT_STATE_CLAIMS``)."""
    headers: Mapping[str, str] = field(default_factory=CaseInsensitiveDict)
    """``Accept-Language`` and the headers named in ``CHATKIT_AGENT_HEADERS``, as the page sent them."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The ``metadata`` of the request, as the page sent it."""
    root_url: Callable[[], str] = field(default=lambda: "/", compare=False)
    """Returns the address of this service, as the request has it."""
    started: Callable[[], None] = field(default=lambda: None, compare=False)
    """Call it when the processor-bound start of the request is done."""
    usage: Meter = field(default_factory=Meter, compare=False)
    """Counts what the models use."""
    session_id: str = ""
    """The session that the request belongs to."""
    run_id: str = ""
    """The id of the response as an active run; empty if the response is not an active run."""
    is_repeatable: bool = True
    """Whether a retry of the last user message repeats this response, and destroys no other."""
    brings_message: bool = False
    """Whether the request has a user message. Until that is stored, a retry would repeat the one before it."""
    message_is_stored: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Set when the request's user message is stored."""
    message_is_refused: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Set when an input guardrail has refused the request's user message."""
    run_is_active: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Set from the beginning to the end of the run. Meanwhile nothing is stored without the run's row."""
    saving_thread: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    """Held while a thread is saved and the objects in ``threads`` are updated."""
    drafts: dict[str, AssistantMessageItem] = field(default_factory=dict)
    """By id, the messages that this request's response has shown, and that are not stored, except as drafts."""
    stored: dict[str, ThreadItem] = field(default_factory=dict)
    """By id, items that are stored as the next event shows them, so that the SDK need not store them again."""
    threads: dict[str, list[tuple[ThreadMetadata, ThreadMetadata]]] = field(default_factory=dict)
    """By thread id, each object loaded for the thread, with a copy of its stored state when it was last loaded or saved.

    The list of a thread that this request created is empty until the thread is stored."""

    @property
    def can_be_repeated(self) -> bool:
        """Whether the page may offer a retry now."""
        return self.is_repeatable and (self.message_is_stored.is_set() or not self.brings_message)

    @property
    def needs_refusal_mark(self) -> bool:
        """Whether the user's message was refused. A turn without one, such as an action, has none that could be left out."""
        return self.is_repeatable and self.message_is_refused.is_set()


current_context: ContextVar[ChatContext | None] = ContextVar("current_context", default=None)
"""The context of the request that the current task handles, for code that is not passed one."""
