"""The limits and guarantees of this service for any ``ChatKitServer``, and the handling of requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from functools import partial
from types import new_class
from typing import Any, TypeVar

import agents
import openai
from agents.models.openai_responses import ResponsesWebSocketError
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from chatkit.actions import Action
from chatkit.backends.selfhosted.chat import approvals
from chatkit.backends.selfhosted.chat.context import ChatContext, current_context
from chatkit.backends.selfhosted.chat.defaults import DefaultServer, Resources, openai_error, openai_reference
from chatkit.backends.selfhosted.chat.events import assistant_text
from chatkit.backends.selfhosted.chat.history import current_store, refusal
from chatkit.backends.selfhosted.chat.images import ImageRefusedError
from chatkit.backends.selfhosted.chat.pages import MAX_PAGE
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.surrogates import to_json
from chatkit.backends.selfhosted.chat.timestamps import in_utc
from chatkit.backends.selfhosted.chat.transactions import ThreadGone
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, describe, unavailable
from chatkit.backends.selfhosted.sessions import HIDDEN_ITEM_TYPES
from chatkit.errors import BaseStreamError, CustomStreamError, ErrorCode, StreamError
from chatkit.server import DEFAULT_PAGE_SIZE, ChatKitServer
from chatkit.store import NotFoundError
from chatkit.types import (
    AssistantMessageItem,
    ChatKitReq,
    ClientToolCallItem,
    ErrorEvent,
    FeedbackKind,
    GeneratedImageItem,
    StructuredInputItem,
    SyncCustomActionResponse,
    ThreadCreatedEvent,
    ThreadItem,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    ThreadUpdatedEvent,
    UserMessageItem,
    WidgetItem,
    is_streaming_req,
)
from chatkit.web import errors

log = logging.getLogger(__name__)

START_SECONDS = 0.25  # a start that takes longer waits for I/O
CLOSING_SECONDS = 10  # for what a server still does after its response was cancelled or has failed
MESSAGES = ("threads.create", "threads.add_user_message")
# ChatKit and our pages retry the last user message. After an action of a widget, the output of a client tool or a structured
# input that would delete the response that came before, or what the user has entered.
REPEATABLE = (*MESSAGES, "threads.retry_after_item")
MAX_TITLE = 200
MAX_FEEDBACK_ITEMS = 100
MAX_ANSWERS = 100  # to the questions of a structured input

Result = TypeVar("Result")

_END: Any = object()

# Built once: the SDK builds it for each request, which takes longer than handling the request.
_request: TypeAdapter[Any] = TypeAdapter(ChatKitReq)


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def read_request(body: bytes) -> Any:
    """Parse ``body`` as a ``ChatKitReq``. A title that is too long is truncated, and a page has at most ``MAX_PAGE`` rows.

    Raises:
        InvalidRequestBody: it is not a valid request, or exceeds a limit.
        NotFound: an id contains a NUL, which PostgreSQL rejects.
    """
    try:
        chat_request = _request.validate_json(body)
    except ValidationError as error:
        raise errors.InvalidRequestBody("not a ChatKit request") from error
    params = chat_request.params
    ids = [getattr(params, name, None) or "" for name in ("thread_id", "item_id", "attachment_id", "after")]
    given, action = getattr(params, "input", None), getattr(params, "action", None)
    if any("\0" in id_ for id_ in (*ids, *getattr(params, "item_ids", ()), *getattr(given, "attachments", ()))):
        raise errors.NotFound("an id contains a NUL")
    if len(getattr(given, "answers", ())) > MAX_ANSWERS:
        raise errors.InvalidRequestBody(f"more than {MAX_ANSWERS} answers")
    if action and not isinstance(action.type, str):  # the SDK's default is not a text
        raise errors.InvalidRequestBody("an action without a type")
    if getattr(params, "limit", None) is not None:
        params.limit = min(params.limit, MAX_PAGE)
    if chat_request.type == "threads.update":
        params.title = params.title[:MAX_TITLE]
    return chat_request


class GuardedServer(ChatKitServer[ChatContext]):
    """This service's limits and guarantees, in front of the methods of another ``ChatKitServer``. See ``guarded``.

    Args:
        resources: what the servers of the process share.
        arguments: for the constructor of the other class.
    """

    store: SqlStore

    def __init__(self, resources: Resources, *arguments: Any) -> None:
        self._chatkit_resources = resources  # a name that an operator's class does not have
        super().__init__(*arguments)

    def _process_events(
        self, thread: ThreadMetadata, context: ChatContext, stream: Callable[[], AsyncIterator[ThreadStreamEvent]]
    ) -> AsyncIterator[ThreadStreamEvent]:
        # The SDK passes the events of every response through this method, whatever the request.
        return super()._process_events(thread, context, lambda: self._guarded_events(thread, stream, context))

    async def _guarded_events(
        self, thread: ThreadMetadata, stream: Callable[[], AsyncIterator[ThreadStreamEvent]], context: ChatContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Stream a response within the time limit; exceptions become ChatKit's errors.

        After an error, what the user has seen of a message is stored, unless a guardrail refused it.
        """
        drafts = self._chatkit_resources.drafts

        deadline = asyncio.get_running_loop().time() + self._chatkit_resources.turn_seconds
        asyncio.get_running_loop().call_later(START_SECONDS, context.started)
        shown = ""
        async with AsyncExitStack() as stack:
            stack.push_async_exit(partial(self._finish_response, thread, context))
            events: Any = await _response(deadline, _call(stream))
            if isinstance(events, AsyncGenerator):
                stack.push_async_callback(_close, events)
            while (event := await _response(deadline, anext(events, _END), shown)) is not _END:
                context.started()
                if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
                    shown = assistant_text(event.item)
                if isinstance(event, ThreadItemDoneEvent | ThreadItemReplacedEvent):
                    await drafts.finish([event.item.id])
                    if isinstance(event.item, AssistantMessageItem):
                        context.drafts[event.item.id] = event.item  # until the SDK has stored it
                elif isinstance(event, ThreadItemRemovedEvent):
                    shown = ""
                    await drafts.finish([event.item_id, *context.drafts])
                    context.drafts.pop(event.item_id, None)
                    unstored = dict(context.drafts)
                    context.drafts.clear()  # if the removal fails, all may be what a guardrail has refused
                    yield event
                    context.drafts.update(unstored)
                    continue
                if isinstance(event, ThreadItemDoneEvent | ThreadItemReplacedEvent) and isinstance(
                    event.item, GeneratedImageItem
                ):
                    try:
                        await self.store.save_item(thread.id, event.item, context)
                    except ImageRefusedError:
                        yield ThreadItemRemovedEvent(item_id=event.item.id)  # the page shows partial images
                        raise
                yield event
                await context.buffer.room()

    async def _finish_response(
        self, thread: ThreadMetadata, context: ChatContext, _type: Any, error: BaseException | None, _traceback: Any
    ) -> None:
        """After an ``error``, store the unfinished messages of a response, or that a guardrail refused its message.

        Unfinished messages that the server has given up are deleted.
        """
        if error is not None:
            context.usage.abort_calls(error.__cause__)
        if isinstance(error, GeneratorExit):
            return  # the event could not be stored or sent; what the user has seen is stored with the end of the run
        await self._chatkit_resources.drafts.finish(context.drafts)
        items: list[ThreadItem] = []
        if isinstance(error, BaseStreamError):  # the SDK stores them if the response was cancelled
            error.allow_retry &= thread.status.type == "active"
            if not isinstance(error.__cause__, _TRIPWIRES):
                items += [message for message in context.drafts.values() if assistant_text(message).strip()]
        if context.needs_refusal_mark and not isinstance(error, asyncio.CancelledError):
            items.append(refusal(thread))
        for item in items:
            try:
                await self.store.save_item(thread.id, item, context)
            except Exception as failure:  # noqa: BLE001  the user is told the error
                log.warning("a %s could not be stored (%s)", item.type, type(failure).__name__)
        if error is None or isinstance(error, BaseStreamError):
            await self._delete_drafts(context.drafts.keys() - {item.id for item in items}, thread, context)

    async def _delete_drafts(self, message_ids: Iterable[str], thread: ThreadMetadata, context: ChatContext) -> None:
        for message_id in message_ids:
            try:
                await self.store.delete_thread_item(thread.id, message_id, context)
            except Exception as failure:  # noqa: BLE001  the response has ended
                log.warning("an unfinished message could not be deleted (%s)", type(failure).__name__)
            context.drafts.pop(message_id, None)

    def _update_pending_items(self, pending_items: dict[str, ThreadItem], event: ThreadItemUpdatedEvent) -> None:
        """Schedule a draft of the message that ``event`` updates. The SDK calls this with each update."""
        super()._update_pending_items(pending_items, event)
        message = pending_items.get(event.item_id)
        if isinstance(message, AssistantMessageItem) and (context := current_context.get()):
            context.drafts[message.id] = message
            self._chatkit_resources.drafts.schedule(context, message)

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[ThreadItem], context: ChatContext
    ) -> None:
        await self._chatkit_resources.drafts.finish(context.drafts)
        deadline = asyncio.get_running_loop().time() + CLOSING_SECONDS
        await _within(deadline, super().handle_stream_cancelled(thread, pending_items, context))
        await self._delete_drafts(list(context.drafts), thread, context)  # those that the server has not stored
        if context.needs_refusal_mark:  # the operator's code caught the exception and went on
            await _within(deadline, self.store.save_item(thread.id, refusal(thread), context))

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        response = await super().sync_action(thread, action, sender, context)
        hidden = response.updated_item is not None and response.updated_item.type in HIDDEN_ITEM_TYPES
        return SyncCustomActionResponse() if hidden else response

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        if len(item_ids) > MAX_FEEDBACK_ITEMS:
            raise errors.InvalidRequestBody(f"feedback on more than {MAX_FEEDBACK_ITEMS} items")
        await self.store.load_thread(thread_id, context)  # raises if it is not the user's
        await super().add_feedback(thread_id, sorted(set(item_ids)), feedback, context)

    def _serialize(self, obj: BaseModel) -> bytes:
        return to_json(in_utc(obj), super()._serialize)

    def _get_attachment_store(self) -> Any:
        self._chatkit_resources.attachments.require()  # whatever store the server has
        return super()._get_attachment_store()


def guarded(server: type[ChatKitServer[Any]], resources: Resources, *arguments: Any) -> GuardedServer:
    """Create a ``server`` with ``GuardedServer`` in front of its methods and ``DefaultServer`` behind them.

    Its class inherits from all three, so whatever ``server`` overrides is called, also methods that OpenAI's package calls
    within itself.

    Args:
        server: the class of an operator, or one of ours.
        resources: what the servers of the process share.
        arguments: for the constructor, after the store.
    """
    composed: Any = new_class(server.__name__, (GuardedServer, server, DefaultServer))
    created: GuardedServer = composed(resources, resources.store, *arguments)
    return created


async def handle(server: GuardedServer, request: Any, context: ChatContext) -> None:
    """Handle ``request`` and put the response, JSON or an event stream, into the context's buffer.

    Raises:
        ApiError: the request can't be served; the buffer is empty.
    """
    put = context.buffer.put
    last: ThreadStreamEvent | None = None
    current_context.set(context)
    current_store.set(server.store)
    try:
        await _check(server, request, context)
        if is_streaming_req(request):
            async with aclosing(_run_events(server, request, context)) as events:
                async for event in events:
                    if isinstance(event, ErrorEvent):
                        event.allow_retry &= context.can_be_repeated
                    put(_sse(server._serialize(event)))
                    if not (isinstance(last, ErrorEvent) and isinstance(event, ThreadUpdatedEvent)):
                        last = event  # the SDK sends a changed title after an error
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(START_SECONDS, context.started)
            deadline = loop.time() + server._chatkit_resources.turn_seconds
            put(await _within(deadline, server._process_non_streaming(request, context)))
    except asyncio.CancelledError:
        if context.buffer.interrupted and last is not None:
            last = ErrorEvent(code=ErrorCode.STREAM_ERROR, allow_retry=context.can_be_repeated)
            put(_sse(server._serialize(last)))
        raise
    except Exception as error:
        if last is None:
            with api_errors():
                raise
        _log_failure(error)
        if not isinstance(last, ErrorEvent):
            last = _error_event(error)
            last.allow_retry &= context.can_be_repeated
            put(_sse(server._serialize(last)))
    finally:
        interrupted = isinstance(last, ErrorEvent) and last.allow_retry
        await server._chatkit_resources.runs.end(context, interrupted=interrupted)


def _log_failure(error: Exception) -> None:
    if isinstance(error, UNAVAILABLE):
        log.error("a stream failed, because the database is unavailable (%s): %s", type(error).__name__, describe(error))
    elif not isinstance(error, ThreadGone | CustomStreamError):  # that is logged already, or is for the user
        log.error("a stream failed", exc_info=error)


def _error_event(error: Exception) -> ErrorEvent:
    """Return the event for an ``error`` that ended a stream, not the response within: that has its own."""
    if isinstance(error, CustomStreamError):
        return ErrorEvent(code="custom", message=error.message, allow_retry=error.allow_retry)
    return ErrorEvent(code=ErrorCode.STREAM_ERROR, allow_retry=not isinstance(error, ThreadGone))


async def _run_events(server: GuardedServer, request: Any, context: ChatContext) -> AsyncGenerator[ThreadStreamEvent]:
    """Stream the events of a response, as an active run of its thread.

    It stops other runs, except that a widget's action leaves them alone: it may only record something, such as a decision.

    Nothing is awaited between two events of a message, so cancellation always interrupts OpenAI's server, which then stores the
    partial message.
    """
    runs = server._chatkit_resources.runs
    if request.type == "threads.custom_action":
        await runs.begin(request.params.thread_id, context)
    elif request.type != "threads.create":
        await runs.begin_alone(request.params.thread_id, context, lambda: _check_thread(server, request, context))
    if request.type == "threads.retry_after_item":
        # The SDK would load all later items and delete them one by one.
        await server.store.delete_after(request.params.thread_id, request.params.item_id, context)
    elif request.type not in ("threads.create", "threads.custom_action"):
        for widget in await approvals.discard(server.store, request.params.thread_id, context):
            yield ThreadItemReplacedEvent(item=widget)
    async with aclosing(server._process_streaming_impl(request, context)) as events:
        async for event in events:
            if isinstance(event, ThreadCreatedEvent):
                runs.begun(context)  # stored with the thread
            if not _is_hidden(event):
                yield event


def _is_hidden(event: ThreadStreamEvent) -> bool:
    """Return whether the page must not see ``event``. OpenAI's server keeps back only ``ThreadItemDoneEvent``."""
    return isinstance(event, ThreadItemAddedEvent | ThreadItemReplacedEvent) and event.item.type in HIDDEN_ITEM_TYPES


async def _check(server: GuardedServer, request: Any, context: ChatContext) -> None:
    """Reject attachments and choices that the composer does not offer, and input that does not fit its thread.

    The SDK leaves some of that to its user, and checks the rest only when the thread's active run has been stopped. Actions are
    left to the server: one may open a locked thread again, or be a decision.
    """
    message = getattr(request.params, "input", None)
    thread_id = getattr(request.params, "thread_id", None)
    if attachment_ids := getattr(message, "attachments", None):
        attachments = server._chatkit_resources.attachments
        await attachments.check(attachment_ids, thread_id, context, are_stored_here=server.attachment_store is attachments)
    if request.type == "attachments.delete":  # the SDK asks the server's AttachmentStore first, which may not know users
        server._chatkit_resources.attachments.require()
        await server.store.load_attachment(request.params.attachment_id, context)
    if thread_id and is_streaming_req(request) and request.type != "threads.custom_action":
        await _check_thread(server, request, context)
    if options := getattr(message, "inference_options", None):
        server._chatkit_resources.composer.check(options)


async def _check_thread(server: GuardedServer, request: Any, context: ChatContext) -> None:
    if (await server.store.load_thread(request.params.thread_id, context)).status.type != "active":
        raise errors.ThreadNotActive("the thread is locked or closed")
    if not await _fits_items(server.store, request, context):
        raise errors.InvalidRequestBody("the request does not fit the items of its thread")


async def _fits_items(store: SqlStore, request: Any, context: ChatContext) -> bool:
    params = request.params
    match request.type:
        case "threads.add_client_tool_output":
            # Not only the last one: the response to an action, which may be active, moves the call to the end.
            newest = await store.load_thread_items(params.thread_id, None, DEFAULT_PAGE_SIZE, "desc", context)
            answer = itertools.takewhile(lambda item: not isinstance(item, UserMessageItem), newest.data)
            return any(isinstance(item, ClientToolCallItem) and item.status == "pending" for item in answer)
        case "threads.add_structured_input":
            item = await store.load_item(params.thread_id, params.item_id, context)
            return isinstance(item, StructuredInputItem) and item.status == "pending"
        case "threads.retry_after_item":
            return isinstance(await store.load_item(params.thread_id, params.item_id, context), UserMessageItem)
    return True


class _TimeLimitError(Exception):
    """A response took more than ``CHATKIT_TURN_SECONDS``, or another method of a server more than its time."""


async def _call(stream: Callable[[], AsyncIterator[ThreadStreamEvent]]) -> AsyncIterator[ThreadStreamEvent]:
    return aiter(stream())


async def _close(events: AsyncGenerator[ThreadStreamEvent]) -> None:
    """Close a server's generator, which may clean up. What it raises does not replace the response's error."""
    try:
        await _within(asyncio.get_running_loop().time() + CLOSING_SECONDS, events.aclose())
    except Exception as error:  # noqa: BLE001
        log.warning("a server failed to clean up after its response (%s)", type(error.__cause__ or error).__name__)


async def _response(deadline: float, work: Awaitable[Result], shown: str = "") -> Any:
    """Await a part of a response, after the message ``shown``. ``_END`` is its end.

    Raises:
        BaseStreamError: the error to show to the user.
    """
    try:
        return await _within(deadline, work)
    except Exception as error:
        if isinstance(error, agents.ModelRefusalError) and shown.endswith(error.refusal):
            log.info("the model refused")  # the user has seen the refusal
            return _END
        if isinstance(error, BaseStreamError):
            raise  # with the cause that the server gave it
        raise _stream_error(error) from error


async def _within(deadline: float, work: Awaitable[Result]) -> Result:
    """Await ``work``, which may be an operator's code, until ``deadline``.

    Whatever it raises ends only its own request: asyncio lets SystemExit and KeyboardInterrupt end the whole event loop.

    Raises:
        _TimeLimitError: it took longer.
        Exception: that of ``work``; a ``RuntimeError`` in place of other kinds of exceptions.
    """
    timeout = asyncio.timeout_at(deadline)
    try:
        async with timeout:
            return await work
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise  # the request was cancelled
        if timeout.expired():
            raise _TimeLimitError from error
        if isinstance(error, Exception):
            raise
        raise RuntimeError(f"the server raised {type(error).__name__}") from error


@contextmanager
def api_errors() -> Iterator[None]:
    """Raise the contract's error in place of an exception that has one."""
    try:
        yield
    except Exception as error:
        if api_error := _api_error(error):
            raise api_error from error
        raise  # an ApiError or an unhandled exception


def _api_error(error: Exception) -> errors.ApiError | None:
    """Convert an error that occurred before the response started, if the contract has one for it."""
    if isinstance(error, UNAVAILABLE):
        return unavailable("the conversation could not be loaded or stored", error)
    if isinstance(error, NotFoundError):
        return errors.NotFound("no such thread, item, attachment or run of this user")
    if isinstance(error, _TimeLimitError):
        return errors.ServiceBusy("the request took more than CHATKIT_TURN_SECONDS")
    if isinstance(error, openai.APIError):
        return openai_error(error, "a method of the server failed")
    if isinstance(error, CustomStreamError):
        return errors.RequestRefused("by a method of the server", message=error.message)
    status, detail = getattr(error, "status_code", None), getattr(error, "detail", None)
    # FastAPI's HTTPException is such an error. Those of HTTP clients have a response as well, and are no answer to the user.
    if isinstance(status, int) and 400 <= status < 500 and not hasattr(error, "response"):
        message = detail if isinstance(detail, str) else ""
        return errors.RequestRefused("by a method of the server", status=status, message=message)
    # Raised by the SDK for a request that its thread's state does not allow.
    if isinstance(error, ValueError) and not isinstance(error, PydanticSerializationError):
        log.info("a request was rejected", exc_info=error)  # it may be an error in a method of the server as well
        return errors.InvalidRequestBody("the request does not fit its thread")
    return None


_TRIPWIRES = (
    agents.InputGuardrailTripwireTriggered,
    agents.OutputGuardrailTripwireTriggered,
    agents.ToolInputGuardrailTripwireTriggered,
    agents.ToolOutputGuardrailTripwireTriggered,
)


def _status(error: openai.APIStatusError | ResponsesWebSocketError) -> int | None:
    if isinstance(error, openai.APIStatusError):
        return error.status_code
    status = error.payload.get("status")
    return status if isinstance(status, int) else None


def _stream_error(error: Exception) -> BaseStreamError:
    """Convert an exception of a server to an error for the user, without internal details."""
    if isinstance(error, _TimeLimitError):
        log.warning("the response took more than CHATKIT_TURN_SECONDS")
        return CustomStreamError("The response took too long. Please try again.", allow_retry=True)
    if isinstance(error, agents.MaxTurnsExceeded):
        log.warning("the agent did not finish within its max_turns")
        # A retry would call its tools again.
        return CustomStreamError("The assistant could not finish this. Please ask for less at a time.", allow_retry=False)
    if isinstance(error, (*_TRIPWIRES, agents.ModelRefusalError)):
        log.info("a guardrail or the model refused (%s)", type(error).__name__)
        return CustomStreamError("This can't be answered here.", allow_retry=False)
    if isinstance(error, openai.APIStatusError | ResponsesWebSocketError) and (status := _status(error)):
        # The error's text is not logged: it quotes the key and the request.
        log.error("the model's service responded with %d%s", status, openai_reference(error))
        if status == 429:
            return CustomStreamError("The assistant is busy. Please try again in a moment.", allow_retry=True)
        return StreamError(ErrorCode.STREAM_ERROR, allow_retry=status >= 500)
    if isinstance(error, openai.APIError | ResponsesWebSocketError | agents.ModelBehaviorError):
        # Their texts are not logged: they quote the service and the model's output.
        log.error("no usable response from the model's service (%s)", type(error).__name__)
        return StreamError(ErrorCode.STREAM_ERROR, allow_retry=True)
    log.error("the assistant failed", exc_info=error)
    return StreamError(ErrorCode.STREAM_ERROR, allow_retry=True)
