"""Small pieces that ChatKit's event streams are made of."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

from agents import (
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    RawResponsesStreamEvent,
    RunErrorHandlerInput,
    RunErrorHandlers,
    RunResultStreaming,
    StreamEvent,
)
from openai.types.responses.response_output_text import Annotation
from pydantic import BaseModel, TypeAdapter, ValidationError

from chatkit.agents import AgentContext, stream_agent_response
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.store import SqlStore, new_id
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    GeneratedImageItem,
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
    WorkflowItem,
)


def text_of(message: UserMessageItem) -> str:
    """What the user has typed, with each mention by its name, as a model is given it."""
    return "".join(part.text if isinstance(part, UserMessageTextContent) else f"@{part.text}" for part in message.content)


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


_annotation: TypeAdapter[Any] = TypeAdapter(Annotation)


async def outcome(work: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What comes of an operator's code that has a task of its own: its result, or its error.

    asyncio lets SystemExit and KeyboardInterrupt of a task end the whole loop.
    """
    try:
        return await work, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  raised again where the turn is
        return None, error


class _Run:
    """The part of a ``RunResultStreaming`` that the SDK's bridge reads, with the model's events as the bridge takes them."""

    def __init__(self, context: AgentContext[Any], result: RunResultStreaming) -> None:
        self._context = context
        self._events = result.stream_events()
        self.model_ids: set[str] = set()
        """The ids of the items that the model's responses have brought so far."""
        self.continued: WorkflowItem | None = None
        """The thread's last workflow as it was before this run, if the run goes on with it."""
        self.abandoned = False

    def stream_events(self) -> AsyncIterator[StreamEvent]:
        # The bridge calls this once it has looked for a workflow to go on with.
        if self._context.workflow_item:
            self.continued = self._context.workflow_item.model_copy(deep=True)
        return self

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        try:
            event = await anext(self._events)
            while isinstance(event, RawResponsesStreamEvent) and not self._read_response(event.data):
                event = await anext(self._events)
        except Exception:
            if self.abandoned:  # asyncio would log an exception that nobody retrieves
                return cast(StreamEvent, None)
            raise
        if event.type == "run_item_stream_event" and event.item.type == "tool_call_item":
            self._note_id(event.item.raw_item)
        return event

    def _read_response(self, data: Any) -> bool:
        """Whether the bridge can convert ``data``. Citations that it can't convert would end the answer; they are left out."""
        if data.type in ("response.output_item.added", "response.output_item.done"):
            self._note_id(data.item)
            if data.item.type == "message":
                _keep_convertible(data.item.content)
        elif data.type == "response.content_part.added":
            _keep_convertible([data.part])
        elif data.type == "response.output_text.annotation.added":
            # openai 3 gives these annotations classes of their own, which openai-chatkit 1.6 refuses; it takes a dict.
            data.annotation = _as_dict(data.annotation)
            return _is_convertible(data.annotation)
        return True

    def _note_id(self, item: Any) -> None:
        found = item.get("id") if isinstance(item, dict) else getattr(item, "id", None)
        if isinstance(found, str):
            self.model_ids.add(found)


def _keep_convertible(parts: list[Any]) -> None:
    for part in parts:
        if part.type == "output_text":
            part.annotations = [annotation for annotation in part.annotations or () if _is_convertible(_as_dict(annotation))]


def _as_dict(annotation: Any) -> Any:
    return annotation.model_dump(warnings=False) if isinstance(annotation, BaseModel) else annotation


def _is_convertible(annotation: Any) -> bool:
    try:
        _annotation.validate_python(annotation)
    except ValidationError:
        return False
    return True


async def agent_events(
    context: AgentContext[Any], result: RunResultStreaming, *, speaks: bool = True
) -> AsyncGenerator[ThreadStreamEvent]:
    """The events of one run of an agent: OpenAI's own conversion, with ids of ours for the model's messages and calls.

    A model's ids are not ours to rely on: models outside OpenAI's Responses API give all their messages the same one. Items
    that tools stream have their own ids and keep them. Closing the generator cancels the run.

    Args:
        context: for this run alone.
        result: the run.
        speaks: whether the user sees the model's messages.
    """
    run = _Run(context, result)
    own_ids = _OwnIds(run.model_ids, speaks=speaks)
    converted = cast(AsyncGenerator[ThreadStreamEvent], stream_agent_response(context, cast(RunResultStreaming, run)))
    message: AssistantMessageItem | None = None
    images: set[str] = set()  # that are not finished
    try:
        async with aclosing(converted):
            async for event in converted:
                for own in own_ids.replace(event):
                    if isinstance(own, ThreadItemAddedEvent | ThreadItemDoneEvent):
                        if isinstance(own.item, AssistantMessageItem):
                            message = own.item
                        elif isinstance(own.item, GeneratedImageItem):
                            (images.add if isinstance(own, ThreadItemAddedEvent) else images.discard)(own.item.id)
                    yield own
        for image_id in images:  # the bridge says nothing of one that fails
            yield ThreadItemRemovedEvent(item_id=image_id)
    except ModelRefusalError as error:
        # It overtakes the end of the message that it is in.
        texts = getattr(error, "message_parts", [error.refusal])
        if message and message_text(message) != "".join(texts):
            content = [AssistantMessageContent(text=text) for text in texts]
            yield ThreadItemDoneEvent(item=message.model_copy(update={"content": content}))
        raise
    except (InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered):
        # The bridge has removed what is new.
        if run.continued:
            yield ThreadItemReplacedEvent(item=run.continued)
        raise
    finally:
        run.abandoned = True
        if not result.is_complete:
            result.cancel()
        # The bridge leaves a task behind that waits on the context's queue; asyncio would log its destruction. This ends it.
        await context.stream(ProgressUpdateEvent(text=""))


def _keep_message(data: RunErrorHandlerInput[Any]) -> None:
    (*_, message) = [item for item in data.run_data.raw_responses[-1].output if item.type == "message"]
    data.error.message_parts = [  # type: ignore[union-attr]
        part.text if part.type == "output_text" else part.refusal for part in message.content
    ]


KEEP_REFUSED_MESSAGE: RunErrorHandlers[Any] = {"model_refusal": _keep_message}
"""For ``Runner.run_streamed``: a refusal stays an error, and ``agent_events`` gets to know the whole message that it is in."""

_KINDS = {"assistant_message": "message", "client_tool_call": "tool_call"}


class _OwnIds:
    """Replaces the ids in ``model_ids`` by ids of ours, and leaves the model's messages out unless it ``speaks``."""

    def __init__(self, model_ids: set[str], *, speaks: bool) -> None:
        self._model_ids = model_ids
        self._speaks = speaks
        # By the model's id and the type of the item; several where the model uses one id again.
        self._own: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def replace(self, event: ThreadStreamEvent) -> list[ThreadStreamEvent]:
        """``event`` with our id; a removal becomes one for each item that had the model's id."""
        match event:
            case ThreadItemAddedEvent() | ThreadItemDoneEvent() | ThreadItemReplacedEvent():
                item = event.item
                if item.id not in self._model_ids or item.type not in _KINDS:
                    return [event]
                if item.type == "assistant_message" and not self._speaks:
                    return []
                own = self._own[item.id, item.type]
                if not own or isinstance(event, ThreadItemAddedEvent):
                    own.append(new_id(_KINDS[item.type]))
                return [event.model_copy(update={"item": item.model_copy(update={"id": own[-1]})})]
            case ThreadItemUpdatedEvent() if event.item_id in self._model_ids:
                # Of a model's items only messages are updated.
                own = self._own[event.item_id, "assistant_message"]
                return [event.model_copy(update={"item_id": own_id}) for own_id in own[-1:]]
            case ThreadItemRemovedEvent() if event.item_id in self._model_ids:
                return [ThreadItemRemovedEvent(item_id=own) for kind in _KINDS for own in self._own[event.item_id, kind]]
        return [event]
