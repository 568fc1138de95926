"""Small pieces that ChatKit's event streams are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

from agents import ModelRefusalError, RawResponsesStreamEvent, RunResultStreaming, StreamEvent
from pydantic import BaseModel

from chatkit.agents import AgentContext, stream_agent_response
from chatkit.conversation.storage import ChatContext, SqlStore, new_id
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    ProgressUpdateEvent,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    UserMessageTextContent,
)


def text_of(message: UserMessageItem) -> str:
    """What the user has typed, without tags and attachments."""
    return "".join(part.text for part in message.content if isinstance(part, UserMessageTextContent))


def message_text(message: AssistantMessageItem) -> str:
    """What the assistant has said in ``message``."""
    return "".join(part.text for part in message.content)


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


class _Run:
    """The part of a ``RunResultStreaming`` that the SDK's bridge reads, with the model's events as the bridge takes them."""

    def __init__(self, result: RunResultStreaming) -> None:
        self._events = result.stream_events()
        self.model_ids: set[str] = set()
        """The ids of the items that the model's responses have brought so far."""
        self.abandoned = False

    def stream_events(self) -> AsyncIterator[StreamEvent]:
        return self

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        try:
            event = await anext(self._events)
        except Exception:
            if self.abandoned:  # asyncio would log an exception that nobody retrieves
                return cast(StreamEvent, None)
            raise
        if isinstance(event, RawResponsesStreamEvent):
            self._read_response(event.data)
        elif event.type == "run_item_stream_event" and event.item.type == "tool_call_item":
            self._note_id(event.item.raw_item)
        return event

    def _read_response(self, data: Any) -> None:
        if data.type in ("response.output_item.added", "response.output_item.done"):
            self._note_id(data.item)
        elif data.type == "response.output_text.annotation.added" and isinstance(data.annotation, BaseModel):
            # openai 3 gives these annotations classes of their own, which openai-chatkit 1.6 refuses; it takes a dict.
            data.annotation = data.annotation.model_dump()

    def _note_id(self, item: Any) -> None:
        found = item.get("id") if isinstance(item, dict) else getattr(item, "id", None)
        if isinstance(found, str):
            self.model_ids.add(found)


async def agent_events(context: AgentContext[Any], result: RunResultStreaming) -> AsyncGenerator[ThreadStreamEvent]:
    """The events of one run of an agent: OpenAI's own conversion, with ids of ours for the model's messages and calls.

    A model's ids are not ours to rely on: models outside OpenAI's Responses API give all their messages the same one. Items
    that tools stream have their own ids and keep them. Closing the generator cancels the run.
    """
    run = _Run(result)
    own_ids = _OwnIds(run.model_ids)
    converted = cast(AsyncGenerator[ThreadStreamEvent], stream_agent_response(context, cast(RunResultStreaming, run)))
    message: AssistantMessageItem | None = None
    try:
        async with aclosing(converted):
            async for event in converted:
                for own in own_ids.replace(event):
                    if isinstance(own, ThreadItemAddedEvent | ThreadItemDoneEvent) and own.item.type == "assistant_message":
                        message = own.item
                    yield own
    except ModelRefusalError as error:
        # It overtakes the end of the message that it is about.
        if message and message_text(message) != error.refusal:
            refusal = AssistantMessageContent(text=error.refusal)
            yield ThreadItemDoneEvent(item=message.model_copy(update={"content": [refusal]}))
        raise
    finally:
        run.abandoned = True
        if not result.is_complete:
            result.cancel()
        # The bridge leaves a task behind that waits on the context's queue; asyncio would log its destruction. This ends it.
        await context.stream(ProgressUpdateEvent(text=""))


_KINDS = {"assistant_message": "message", "client_tool_call": "tool_call"}


class _OwnIds:
    """Replaces the ids in ``model_ids`` by ids of ours."""

    def __init__(self, model_ids: set[str]) -> None:
        self._model_ids = model_ids
        self._own: defaultdict[str, list[str]] = defaultdict(list)  # several where the model uses one id again

    def replace(self, event: ThreadStreamEvent) -> list[ThreadStreamEvent]:
        """``event`` with our id; a removal becomes one for each item that had the model's id."""
        match event:
            case ThreadItemAddedEvent() | ThreadItemDoneEvent() | ThreadItemReplacedEvent():
                item = event.item
                if item.id not in self._model_ids or item.type not in _KINDS:
                    return [event]
                own = self._own[item.id]
                if not own or isinstance(event, ThreadItemAddedEvent):
                    own.append(new_id(_KINDS[item.type]))
                return [event.model_copy(update={"item": item.model_copy(update={"id": own[-1]})})]
            case ThreadItemUpdatedEvent() if event.item_id in self._own:
                return [event.model_copy(update={"item_id": self._own[event.item_id][-1]})]
            case ThreadItemRemovedEvent() if event.item_id in self._own:
                return [ThreadItemRemovedEvent(item_id=own) for own in self._own[event.item_id]]
        return [event]
