"""Small pieces that ChatKit's event streams are made of."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

from agents import RunResultStreaming

from chatkit.agents import AgentContext, stream_agent_response
from chatkit.conversation.storage import ChatContext, SqlStore, new_id
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    UserMessageTextContent,
)


def text_of(message: UserMessageItem) -> str:
    """What the user has typed, without tags and attachments."""
    return "".join(part.text for part in message.content if isinstance(part, UserMessageTextContent))


def assistant_message(thread: ThreadMetadata, store: SqlStore, context: ChatContext, text: str) -> ThreadItemDoneEvent:
    """A whole message of the assistant, in one event."""
    return ThreadItemDoneEvent(
        item=AssistantMessageItem(
            id=store.generate_item_id("message", thread, context),
            thread_id=thread.id,
            created_at=datetime.now(),  # noqa: DTZ005  as the SDK's own items have it
            content=[AssistantMessageContent(text=text)],
        )
    )


_KINDS = {"assistant_message": "message", "client_tool_call": "tool_call"}


async def _with_own_ids(events: AsyncGenerator[ThreadStreamEvent]) -> AsyncGenerator[ThreadStreamEvent]:
    """``events`` with identifiers of ours for the messages and calls that came with a model's.

    A model's are not ours to rely on: what does not come from OpenAI's Responses API has the same one for all its messages.
    """
    own: dict[str, str] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ThreadItemAddedEvent | ThreadItemDoneEvent) and event.item.type in _KINDS:
                theirs = event.item.id
                if isinstance(event, ThreadItemAddedEvent) or theirs not in own:
                    own[theirs] = new_id(_KINDS[event.item.type])
                changed: Any = event.model_copy(update={"item": event.item.model_copy(update={"id": own[theirs]})})
                yield changed
            elif isinstance(event, ThreadItemUpdatedEvent | ThreadItemRemovedEvent):
                yield event.model_copy(update={"item_id": own.get(event.item_id, event.item_id)})
            else:
                yield event


def agent_events(context: AgentContext[Any], result: RunResultStreaming) -> AsyncGenerator[ThreadStreamEvent]:
    """The events of one run of an agent: OpenAI's own conversion, with identifiers of ours."""
    # Declared as an iterator, it is a generator, which can be closed.
    return _with_own_ids(cast(AsyncGenerator[ThreadStreamEvent], stream_agent_response(context, result)))
