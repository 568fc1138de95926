"""A turn of the chat, and the interface of who takes it."""

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
    """What an assistant responds to: a thread, and the new message in it, if the turn began with one."""

    thread: ThreadMetadata
    message: UserMessageItem | None
    store: SqlStore
    context: ChatContext

    async def history(self) -> list[ThreadItem]:
        """The thread's items as far as a model gets to see them, the new message included."""
        return await load_history(self.store, self.thread.id, self.context)

    def agent_context(self) -> AgentContext[ChatContext]:
        """What OpenAI's server package hands to the tools of an agent, for one run of it."""
        return AgentContext(thread=self.thread, store=self.store, request_context=self.context)


class Assistant(ABC):
    """Takes turns."""

    @abstractmethod
    def answer(self, turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
        """The events of the response, as they are made."""

    def answer_action(self, turn: Turn, action: Action[str, Any]) -> AsyncGenerator[ThreadStreamEvent] | None:
        """The response to an action of a widget. ``None`` adds the action to what the model sees, and calls ``answer``."""
        return None

    def updated_widget(self, action: Action[str, Any]) -> DynamicWidgetRoot | None:
        """What the widget becomes by an action without a response. ``None`` keeps the action for the model's next turn."""
        return None
