"""A turn of the chat, and the interface of assistants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from chatkit.actions import Action
from chatkit.agents import AgentContext
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.history import load_history
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.types import ThreadItem, ThreadMetadata, ThreadStreamEvent, UserMessageItem
from chatkit.widgets import DynamicWidgetRoot


@dataclass
class Turn:
    """What an assistant responds to: a thread, and its new message if the turn started with one."""

    thread: ThreadMetadata
    message: UserMessageItem | None
    store: SqlStore
    context: ChatContext

    async def history(self) -> list[ThreadItem]:
        """Return the thread's items that are sent to a model, including the new message."""
        return await load_history(self.store, self.thread.id, self.context)

    def agent_context(self) -> AgentContext[ChatContext]:
        """Return a new context for one run of an agent; OpenAI's server package passes it to tools."""
        return AgentContext(thread=self.thread, store=self.store, request_context=self.context)


class Assistant(ABC):
    @abstractmethod
    def respond(self, turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
        """Stream the events of the response."""

    def respond_to_action(self, turn: Turn, action: Action[str, Any]) -> AsyncGenerator[ThreadStreamEvent] | None:
        """Respond to a widget action. ``None`` adds the action to the model's input and calls ``respond``."""
        return None

    def updated_widget(self, action: Action[str, Any]) -> DynamicWidgetRoot | None:
        """Return the widget after an action without a response. ``None`` stores the action for the model's next turn."""
        return None
