"""Conversion of the Agents SDK's events to ChatKit events."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from datetime import datetime
from itertools import takewhile
from typing import Any, cast

import pydantic_core
from agents import (
    AgentUpdatedStreamEvent,
    ImageGenerationTool,
    InputGuardrailTripwireTriggered,
    ItemHelpers,
    MessageOutputItem,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    RawResponsesStreamEvent,
    RunErrorHandlerInput,
    RunErrorHandlers,
    RunItemStreamEvent,
    RunResultStreaming,
    RunState,
    StreamEvent,
    ToolCallItem,
    ToolCallOutputItem,
    ToolOutputText,
)
from agents.models.fake_id import FAKE_RESPONSES_ID
from agents.tool import ValidToolOutputPydanticModels, ValidToolOutputPydanticModelsTypeAdapter
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputItemDoneEvent,
    ResponseReasoningSummaryTextDoneEvent,
)
from openai.types.responses.response_output_text import Annotation
from pydantic import BaseModel, TypeAdapter, ValidationError

from chatkit.agents import AgentContext, ResponseStreamConverter, stream_agent_response
from chatkit.backends.selfhosted.chat.context import current_context
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    DurationSummary,
    EndOfTurnItem,
    GeneratedImageItem,
    HiddenContextItem,
    ProgressUpdateEvent,
    SDKHiddenContextItem,
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

log = logging.getLogger(__name__)


def user_text(message: UserMessageItem) -> str:
    """Return the text of a user message, with each mention as ``@name``, as in the model's input."""
    return "".join(part.text if isinstance(part, UserMessageTextContent) else f"@{part.text}" for part in message.content)


def assistant_text(message: AssistantMessageItem) -> str:
    return "".join(part.text for part in message.content)


def assistant_message(thread: ThreadMetadata, text: str) -> ThreadItemDoneEvent:
    """Return a complete assistant message as one event."""
    return ThreadItemDoneEvent(
        item=AssistantMessageItem(
            id=new_id("message"),
            thread_id=thread.id,
            created_at=datetime.now(),  # noqa: DTZ005  as in the SDK's own items
            content=[AssistantMessageContent(text=text)],
        )
    )


_annotation: TypeAdapter[Any] = TypeAdapter(Annotation)


async def outcome(work: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return the result or the exception of an operator's code that runs in a task of its own.

    An exception is not raised in the task, because asyncio lets SystemExit and KeyboardInterrupt end the whole event loop.
    """
    try:
        return await work, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  the turn raises it
        return None, error


class _Converter(ResponseStreamConverter):
    """OpenAI's conversion, with the progress of an image as the image tool of the current agent is configured."""

    def __init__(self, result: RunResultStreaming) -> None:
        super().__init__()
        self._result = result

    def partial_image_index_to_progress(self, partial_image_index: int) -> float:
        tools = [tool for tool in self._result.current_agent.tools if isinstance(tool, ImageGenerationTool)]
        self.partial_images = tools[0].tool_config.get("partial_images") if tools else None
        progress: float = super().partial_image_index_to_progress(partial_image_index)
        return progress


_NOT_SHOWN_BY_TOOLS = WorkflowItem | GeneratedImageItem | HiddenContextItem | SDKHiddenContextItem | EndOfTurnItem
"""The bridge's own items, and those that the user does not see."""


class _GuardrailFailedError(OutputGuardrailTripwireTriggered):
    """A guardrail raised an exception, the cause of this one. The bridge removes what was not judged."""

    def __init__(self) -> None:
        Exception.__init__(self)


class _BridgedRun:
    """The part of a ``RunResultStreaming`` that the SDK's bridge reads, with model events that the bridge can convert."""

    def __init__(self, context: AgentContext[Any], result: RunResultStreaming, *, show_typed: bool) -> None:
        self._show_typed = show_typed
        self._context = context
        self._result = result
        self._events = result.stream_events()
        self._agent = result.current_agent
        """The agent whose messages come next; that of ``result`` is ahead of the events."""
        self.model_ids: set[str] = set()
        """The ids of the items in the model's responses so far."""
        self.previous_workflow: WorkflowItem | None = None
        """A copy of the thread's last workflow from before this run, if the run continues it."""
        self._items_streamed = False
        """Whether the model has streamed items of its current response."""
        self._shown_in_turn: int | None = None
        """The last turn of the run in which a tool has shown something."""
        self.closed = False
        self._watch_tools()

    def stream_events(self) -> AsyncIterator[StreamEvent]:
        # The bridge calls this after it has looked for a workflow to continue.
        if self._context.workflow_item:
            self.previous_workflow = self._context.workflow_item.model_copy(deep=True)
        return self

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        try:
            event = await anext(self._events)
            while isinstance(event, RawResponsesStreamEvent) and not self._prepare(event.data):
                event = await anext(self._events)
            if isinstance(event, RawResponsesStreamEvent):
                event.data = _with_end_of_thought(self._with_unstreamed_messages(event.data))
            elif isinstance(event, RunItemStreamEvent):
                event = _with_call_id(event)
            elif isinstance(event, AgentUpdatedStreamEvent):
                self._agent = event.new_agent
        except Exception as error:
            if self.closed:  # asyncio would log an exception that is never retrieved
                return cast(StreamEvent, None)
            self._look_at_guardrails(error)
            raise
        if event.type == "run_item_stream_event" and event.item.type == "tool_call_item":
            self._remember_id(event.item.raw_item)
        return event

    def _look_at_guardrails(self, end: Exception) -> None:
        """Let the bridge remove the new items if a guardrail refused or failed, whatever ``end`` the run came to.

        Raises:
            InputGuardrailTripwireTriggered: an input guardrail refused the message, and ``end`` is something else.
            _GuardrailFailedError: a guardrail failed.
        """
        result = self._result
        tripped = [one for one in result.input_guardrail_results if one.output.tripwire_triggered]
        if (tripped or _refuses_message(result, end)) and (context := current_context.get()):
            context.message_is_refused.set()
        if tripped and not isinstance(end, InputGuardrailTripwireTriggered):
            raise InputGuardrailTripwireTriggered(tripped[0]) from end
        tasks = [task for task in (result._input_guardrails_task, result._output_guardrails_task) if task and task.done()]
        if result._cancel_mode == "none" and any(task.cancelled() or task.exception() for task in tasks):
            over = isinstance(end, StopAsyncIteration)
            raise _GuardrailFailedError from (RuntimeError("a guardrail was cancelled") if over else end)

    def _prepare(self, data: Any) -> bool:
        """Discard citations that the bridge can't convert, which would end the response. Return whether to pass on ``data``."""
        if data.type in ("response.output_item.added", "response.output_item.done"):
            self._remember_id(data.item)
            if data.item.type == "message":
                _keep_convertible(data.item.content)
        elif data.type == "response.content_part.added":
            _keep_convertible([data.part])
        elif data.type == "response.output_text.annotation.added":
            # openai 3 has classes for these annotations, which openai-chatkit 1.6 rejects; it accepts a dict.
            data.annotation = _as_dict(data.annotation)
            return _is_convertible(data.annotation)
        elif context := current_context.get():
            if data.type in ("response.incomplete", "response.failed"):
                # The SDK raises an exception next, and does not add this response to the run's usage.
                context.usage.add(self._result.current_agent.name, 1, data.response.usage)
            elif isinstance(delta := getattr(data, "delta", None), str):
                context.usage.note_output(self._result.current_agent.name, len(delta))
        return True

    def _with_unstreamed_messages(self, data: Any) -> Any:
        """Return the end of a response as the end of its messages if the model has streamed nothing else."""
        if data.type != "response.completed":
            self._items_streamed |= data.type == "response.output_item.done"
            return data
        streamed, self._items_streamed = self._items_streamed, False
        messages = [item for item in data.response.output if item.type == "message"]
        if streamed or not messages:
            return data
        parts = [part for item in messages for part in item.content]
        _keep_convertible(parts)
        message = messages[0].model_copy(update={"id": new_id("message"), "content": parts})  # the model may reuse its ids
        self._remember_id(message)
        return ResponseOutputItemDoneEvent(item=message, output_index=0, sequence_number=0, type="response.output_item.done")

    def _watch_tools(self) -> None:
        """Note in which turn a tool shows something, when it streams that: the bridge gets it later, and not in order."""
        queue = self._context._events
        put = queue.put

        async def watched_put(event: Any) -> None:
            if isinstance(event, ThreadItemDoneEvent) and not isinstance(event.item, _NOT_SHOWN_BY_TOOLS):
                self._shown_in_turn = self._result.current_turn
            await put(event)

        queue.put = watched_put  # type: ignore[method-assign, assignment]

    @property
    def shown_by_tool(self) -> bool:
        """Whether one of the tools that the model called last has shown something, or waits for the page."""
        return self._context.client_tool_call is not None or self._shown_in_turn == self._result.current_turn

    @property
    def shows_messages(self) -> bool:
        """Whether the user sees the messages that come next."""
        return self._show_typed or self._agent.output_type in (None, str)

    def _remember_id(self, item: Any) -> None:
        item_id = item.get("id") if isinstance(item, dict) else getattr(item, "id", None)
        if isinstance(item_id, str):
            self.model_ids.add(item_id)


def _refuses_message(result: RunResultStreaming, error: Exception) -> bool:
    """Return whether ``error`` is that of an input guardrail, or of its model, that refuses the user's message."""
    if isinstance(error, ModelRefusalError):
        has_answered = result.raw_responses or _refused_message(result)  # guardrails that are not parallel come before
        task = result._input_guardrails_task
        return not has_answered or bool(task and task.done() and not task.cancelled() and task.exception() is error)
    return isinstance(error, InputGuardrailTripwireTriggered)


def _with_call_id(event: RunItemStreamEvent) -> RunItemStreamEvent:
    """Return the call of a function with an id, which OpenAI's API does not require, and which the bridge does."""
    call = getattr(event.item, "raw_item", None)
    if not isinstance(call, ResponseFunctionToolCall) or call.id:
        return event
    # A copy, because the run sends its own to the model again.
    item = dataclasses.replace(cast(ToolCallItem, event.item), raw_item=call.model_copy(update={"id": new_id("tool_call")}))
    return RunItemStreamEvent(name=event.name, item=item)


def _with_end_of_thought(data: Any) -> Any:
    """Return the end of a thought as OpenAI's Responses API sends it, which the bridge waits for.

    For the Chat Completions API, the SDK sends only the end of the part. The bridge would add the next call's thought to it.
    """
    if data.type != "response.reasoning_summary_part.done" or data.item_id != FAKE_RESPONSES_ID:
        return data
    fields = data.model_dump(include={"item_id", "output_index", "summary_index", "sequence_number"})
    return ResponseReasoningSummaryTextDoneEvent(**fields, text=data.part.text, type="response.reasoning_summary_text.done")


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


class _Shown:
    """What a run has shown, as far as its end depends on that."""

    def __init__(self) -> None:
        self.message: AssistantMessageItem | None = None
        """The last message."""
        self.unfinished_images: set[str] = set()

    def note(self, event: ThreadStreamEvent) -> None:
        if not isinstance(event, ThreadItemAddedEvent | ThreadItemDoneEvent):
            return
        if isinstance(event.item, AssistantMessageItem):
            self.message = event.item
        elif isinstance(event.item, GeneratedImageItem):
            added = isinstance(event, ThreadItemAddedEvent)
            (self.unfinished_images.add if added else self.unfinished_images.discard)(event.item.id)


_WAKE_UP = ProgressUpdateEvent(text="")
"""Ends a task of the bridge that waits on the context's queue; asyncio would log its destruction."""


async def agent_events(
    context: AgentContext[Any],
    result: RunResultStreaming,
    *,
    converter: ResponseStreamConverter | None = None,
    show_typed: bool = True,
    show_tool_output: bool = False,
    rejected_calls: Collection[str] = (),
) -> AsyncGenerator[ThreadStreamEvent]:
    """Convert one run of an agent to ChatKit events, with our own ids for the model's messages and calls.

    This is OpenAI's ``stream_agent_response`` without the events that end it, such as a citation that it can't convert.

    A model's ids are not reliable: models outside OpenAI's Responses API give all their messages the same id. Items that tools
    stream keep their ids. Closing the generator cancels the run.

    Args:
        context: a context for one run at a time.
        result: the run.
        converter: converts images and citations; by default as OpenAI does, with the number of partial images that the agent
            asks for.
        show_typed: whether the user sees the messages of agents with an ``output_type``.
        show_tool_output: whether the user sees the output of a tool that ends the run (``tool_use_behavior``), unless the
            tool has shown something itself. Likewise the message of an error handler.
        rejected_calls: the ids of calls that the user has rejected, whose outputs are only for the model.
    """
    run = _BridgedRun(context, result, show_typed=show_typed)
    id_mapper = _IdMapper(run)
    streamed = stream_agent_response(context, cast(Any, run), converter=converter or _Converter(result))
    converted = cast(AsyncGenerator[ThreadStreamEvent], streamed)
    shown = _Shown()
    failure: BaseException | None = None
    try:
        async with aclosing(converted):
            async for event in converted:
                # An earlier run with this context may have left its own.
                for own in () if event is _WAKE_UP else id_mapper.replace(event):
                    shown.note(own)
                    yield own
        # The bridge sends no event for an image that fails.
        removed = [ThreadItemRemovedEvent(item_id=image_id) for image_id in shown.unfinished_images]
        show_final_output = show_tool_output and not run.shown_by_tool
        for own in [*removed, *(_final_output(context, result, rejected_calls) if show_final_output else ())]:
            yield own
    except ModelRefusalError:
        # It is raised before the end of the message that contains the refusal. The model of a tool may have refused as well.
        texts = _refused_message(result)
        if texts and run.shows_messages and shown.message and assistant_text(shown.message) != "".join(texts):
            content = [AssistantMessageContent(text=text) for text in texts]
            yield ThreadItemDoneEvent(item=shown.message.model_copy(update={"content": content}))
        raise
    except (InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered) as error:
        # The bridge has removed the new items.
        if run.previous_workflow:
            yield ThreadItemReplacedEvent(item=run.previous_workflow)
        failure = error.__cause__ if isinstance(error, _GuardrailFailedError) else error
    finally:
        run.closed = True
        if not result.is_complete:
            result.cancel()
        await context.stream(_WAKE_UP)
    if failure:
        raise failure


def _final_output(
    context: AgentContext[Any], result: RunResultStreaming, rejected_calls: Collection[str]
) -> list[ThreadStreamEvent]:
    """Return the final output as a message, if a tool or an error handler ended the run with something to show."""
    final = result.final_output
    ending = takewhile(lambda item: isinstance(item, ToolCallOutputItem), reversed(result.new_items))
    outputs = [cast(ToolCallOutputItem, item) for item in ending]
    # The SDK makes a text of any output, unless the agent has an output_type.
    item = next((item for item in outputs if final is item.output or _is_text_of(final, item.output)), None)
    if not (outputs or _is_of_error_handler(result)) or (item and item.call_id in rejected_calls):
        return []
    text = _shown_output(item.output if item else final)
    return [*close_workflow(context), assistant_message(context.thread, text)] if text else []


def _is_text_of(final: Any, output: Any) -> bool:
    return isinstance(final, str) and final == str(output)


def _is_of_error_handler(result: RunResultStreaming) -> bool:
    """Return whether the run ended with a message that no model wrote, but an error handler such as that of ``max_turns``."""
    last = result.new_items[-1] if result.new_items else None
    if not isinstance(last, MessageOutputItem):
        return False
    of_models = (output for response in result.raw_responses for output in response.output)
    # A handler's message that is to stay out of the history is not among the items. A refusal without handler is an error.
    return last.raw_item not in of_models or ItemHelpers.extract_refusal(last.raw_item) is not None


def _shown_output(output: Any) -> str:
    """Return the output of a tool as the user sees it: its texts, nothing for images and files, and other values as JSON."""
    if output is None or isinstance(output, str):
        return output or ""
    parts = [_structured(part) for part in (output if isinstance(output, list | tuple) else [output])]
    if not parts or None in parts:
        return pydantic_core.to_json(output, fallback=str).decode()
    return "\n\n".join(part.text for part in parts if isinstance(part, ToolOutputText))


def _structured(part: Any) -> ValidToolOutputPydanticModels | None:
    """Return a part of an output as the SDK gives it to the model, ``None`` if that is as a text."""
    if isinstance(part, dict) and "type" not in part:
        return None
    try:
        return ValidToolOutputPydanticModelsTypeAdapter.validate_python(part)
    except ValidationError:
        return None


def close_workflow(context: AgentContext[Any]) -> list[ThreadItemDoneEvent]:
    """Return the end of the workflow that the bridge left open for the next run, for an item that comes in between."""
    if not (item := context.workflow_item):
        return []
    if item.workflow.summary is None:
        item.workflow.summary = DurationSummary(duration=int((datetime.now() - item.created_at).total_seconds()))  # noqa: DTZ005
    item.workflow.expanded = False
    return [ThreadItemDoneEvent(item=item)]


async def own_server_events(
    context: AgentContext[Any], result: RunResultStreaming, *, converter: ResponseStreamConverter | None = None
) -> AsyncGenerator[ThreadStreamEvent]:
    """``agent_events`` for servers of operators. If a run is lost that waits for an approval, the log says so."""
    async with aclosing(agent_events(context, result, converter=converter)) as events:
        async for event in events:
            yield event
    if result.interruptions:
        _watch_interrupted(result)


def _watch_interrupted(result: RunResultStreaming) -> None:
    """Log an error at the end of the response, unless the state of ``result`` is taken until then."""
    name, to_state, taken = result.last_agent.name, result.to_state, False

    def take() -> RunState[Any]:
        nonlocal taken
        taken = True
        return to_state()

    def check(_task: asyncio.Task[Any]) -> None:
        if not taken:
            log.error("The agent %s waits for an approval that can't be given: see approvals.run_events", name)

    result.to_state = take  # type: ignore[method-assign]
    cast(asyncio.Task[Any], asyncio.current_task()).add_done_callback(check)


def keep_refused_message(run: Callable[..., RunResultStreaming], handlers: RunErrorHandlers[Any] | None) -> RunResultStreaming:
    """Return ``run(error_handlers=...)``, whose message ``agent_events`` can show if the model refuses to go on with it.

    Args:
        run: starts a run.
        handlers: those of the operator.
    """
    texts: list[str] = []
    handle = (handlers or {}).get("model_refusal")

    def keep(data: RunErrorHandlerInput[Any]) -> Any:
        (*_, message) = [item for item in data.run_data.raw_responses[-1].output if item.type == "message"]
        texts[:] = [part.text if part.type == "output_text" else part.refusal for part in message.content]
        return handle(data) if handle else None

    result = run(error_handlers={**(handlers or {}), "model_refusal": keep})
    result._chatkit_refused_message = texts  # type: ignore[attr-defined]
    return result


def _refused_message(result: RunResultStreaming) -> list[str]:
    """Return the parts of the message in which the model of ``result`` refused to go on, if it did."""
    return getattr(result, "_chatkit_refused_message", [])


_ID_TYPES = {"assistant_message": "message", "client_tool_call": "tool_call"}


class _IdMapper:
    """Replaces the ids of the model's items by our own, and discards messages that the user does not see."""

    def __init__(self, run: _BridgedRun) -> None:
        self._run = run
        # By the model's id and the item type; several if the model reuses an id.
        self._own: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def replace(self, event: ThreadStreamEvent) -> list[ThreadStreamEvent]:
        """Return ``event`` with our id; a removal becomes one for each item that had the model's id."""
        match event:
            case ThreadItemAddedEvent() | ThreadItemDoneEvent() | ThreadItemReplacedEvent():
                item = event.item
                if item.id not in self._run.model_ids or item.type not in _ID_TYPES:
                    return [event]
                if item.type == "assistant_message" and not self._run.shows_messages:
                    return []
                own = self._own[item.id, item.type]
                if not own or isinstance(event, ThreadItemAddedEvent):
                    own.append(new_id(_ID_TYPES[item.type]))
                return [event.model_copy(update={"item": item.model_copy(update={"id": own[-1]})})]
            case ThreadItemUpdatedEvent() if event.item_id in self._run.model_ids:
                # Only messages among a model's items are updated.
                if not self._run.shows_messages:
                    return []
                own = self._own[event.item_id, "assistant_message"]
                return [event.model_copy(update={"item_id": own_id}) for own_id in own[-1:]]
            case ThreadItemRemovedEvent() if event.item_id in self._run.model_ids:
                return [ThreadItemRemovedEvent(item_id=own) for kind in _ID_TYPES for own in self._own[event.item_id, kind]]
        return [event]
