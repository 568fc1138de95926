"""OpenAI's ChatKit server with this service's store and assistants."""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

import agents
import openai
from pydantic import BaseModel, TypeAdapter, ValidationError

from chatkit.actions import Action
from chatkit.backends.selfhosted.chat.context import ChatContext, current_context
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.events import assistant_text, user_text
from chatkit.backends.selfhosted.chat.store import SqlStore, ThreadGone, new_id
from chatkit.backends.selfhosted.chat.timestamps import in_utc
from chatkit.backends.selfhosted.chat.turn import Assistant, Turn
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE
from chatkit.errors import BaseStreamError, CustomStreamError, ErrorCode, StreamError
from chatkit.server import ChatKitServer
from chatkit.store import NotFoundError
from chatkit.types import (
    AssistantMessageItem,
    AudioInput,
    ChatKitReq,
    ErrorEvent,
    FeedbackKind,
    HiddenContextItem,
    SyncCustomActionResponse,
    ThreadItem,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    TranscriptionResult,
    UserMessageItem,
    WidgetItem,
    is_streaming_req,
)
from chatkit.web import errors

log = logging.getLogger(__name__)

START_SECONDS = 0.25  # an assistant that neither responds nor asks a model for so long waits for something else
TRANSCRIPTION_SECONDS = 60
MAX_GENERATED_TITLE = 60
MAX_TITLE = 200
MAX_FEEDBACK_ITEMS = 100
MAX_ANSWERS = 100  # to the questions of a structured input
TRANSCRIPTION_MODEL = "gpt-4o-mini-transcribe"

_MEDIA_TYPE = re.compile(r"audio/[\w.+-]{1,50}", re.ASCII)

# Built once: the SDK builds it for each request, which takes longer than handling the request.
_request: TypeAdapter[Any] = TypeAdapter(ChatKitReq)


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def read_request(body: bytes) -> Any:
    """Parse ``body`` as a ``ChatKitReq``. A title that is too long is truncated.

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
    if any("\0" in id_ for id_ in (*ids, *getattr(params, "item_ids", ()))):
        raise errors.NotFound("an id contains a NUL")
    if len(getattr(getattr(params, "input", None), "answers", ())) > MAX_ANSWERS:
        raise errors.InvalidRequestBody(f"more than {MAX_ANSWERS} answers")
    if chat_request.type == "threads.update":
        params.title = params.title[:MAX_TITLE]
    return chat_request


class ChatServer(ChatKitServer[ChatContext]):
    """Handles ChatKit requests.

    Args:
        store: stores the threads.
        assistants: the assistants by agent name; the key ``None`` is the default.
        turn_seconds: the time limit of a response.
        openai_client: used for dictation; ``None`` without an API key.
    """

    store: SqlStore

    def __init__(
        self,
        store: SqlStore,
        assistants: Mapping[str | None, Assistant],
        *,
        turn_seconds: int,
        openai_client: openai.AsyncOpenAI | None,
    ) -> None:
        super().__init__(store)
        self._assistants = assistants
        self._turn_seconds = turn_seconds
        self._drafts = Drafts(store)
        self._openai = openai_client

    def _assistant(self, context: ChatContext) -> Assistant:
        return self._assistants.get(context.agent) or self._assistants[None]

    async def handle(self, request: Any, context: ChatContext) -> None:
        """Handle ``request`` and put the response, JSON or an event stream, into the context's buffer.

        Nothing is awaited between two events, so cancellation always interrupts OpenAI's server, which then stores the partial
        message.

        Raises:
            ApiError: the request can't be served; the buffer is empty.
        """
        if getattr(getattr(request.params, "input", None), "attachments", None):
            raise errors.AttachmentsOff("a message has an attachment")
        put = context.buffer.put
        last: ThreadStreamEvent | None = None
        current_context.set(context)
        try:
            await self._require_active_thread(request, context)
            if request.type == "threads.retry_after_item":
                # The SDK would load all later items and delete them one by one.
                await self.store.delete_after(request.params.thread_id, request.params.item_id, context)
            if is_streaming_req(request):
                async with aclosing(self._process_streaming_impl(request, context)) as events:
                    async for event in events:
                        put(_sse(self._serialize(event)))
                        last = event
            else:
                put(await self._process_non_streaming(request, context))
        except Exception as error:
            if last is not None:
                thread_gone = isinstance(error, ThreadGone)  # already logged
                if not thread_gone:
                    log.exception("a stream failed")
                if not isinstance(last, ErrorEvent):
                    put(_sse(self._serialize(ErrorEvent(code=ErrorCode.STREAM_ERROR, allow_retry=not thread_gone))))
            elif api_error := _api_error(error):
                raise api_error from error
            else:
                raise  # an ApiError or an unhandled exception

    async def _require_active_thread(self, request: Any, context: ChatContext) -> None:
        """Reject input to a locked or closed thread; the SDK leaves that to its user."""
        if is_streaming_req(request) or request.type == "threads.sync_custom_action":
            thread_id = getattr(request.params, "thread_id", None)
            if thread_id and (await self.store.load_thread(thread_id, context)).status.type != "active":
                raise errors.ThreadNotActive("the thread is locked or closed")

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Stream the assistant's response within the time limit; exceptions become ChatKit error events."""
        if thread.title is None and input_user_message is not None:
            thread.title = _title(input_user_message)
        turn = Turn(thread, input_user_message, self.store, context)
        deadline = asyncio.get_running_loop().time() + self._turn_seconds
        asyncio.get_running_loop().call_later(START_SECONDS, context.started)
        shown = ""
        try:
            async with aclosing(self._assistant(context).respond(turn)) as events:
                while (event := await self._next(events, deadline, shown)) is not None:
                    context.started()
                    if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
                        shown = assistant_text(event.item)
                    if isinstance(event, ThreadItemDoneEvent | ThreadItemReplacedEvent):
                        await self._drafts.finish([event.item.id])
                    elif isinstance(event, ThreadItemRemovedEvent):
                        await self._drafts.finish([event.item_id])
                    yield event
                    await context.buffer.room()
        finally:
            await self._drafts.finish(context.drafts)

    async def _next(self, events: AsyncGenerator[ThreadStreamEvent], deadline: float, shown: str) -> ThreadStreamEvent | None:
        """Return the next of the assistant's ``events``, or ``None`` at the end.

        Any exception of the assistant, including SystemExit and GeneratorExit, ends only its own turn.

        Raises:
            BaseStreamError: the error to show to the user.
        """
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                return await anext(events, None)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise  # the request was cancelled
            if isinstance(error, agents.ModelRefusalError) and shown.endswith(error.refusal):
                log.info("the model refused")  # the user has seen the refusal
                return None
            if timeout.expired():
                log.warning("the response took more than CHATKIT_TURN_SECONDS=%d", self._turn_seconds)
                raise CustomStreamError("The answer took too long. Please try again.", allow_retry=True) from error
            raise _stream_error(error) from error

    def _update_pending_items(self, pending_items: dict[str, ThreadItem], event: ThreadItemUpdatedEvent) -> None:
        """Schedule a draft of the message that ``event`` updates. The SDK calls this with each update."""
        super()._update_pending_items(pending_items, event)
        message = pending_items.get(event.item_id)
        if isinstance(message, AssistantMessageItem) and (context := current_context.get()):
            context.drafts.add(message.id)
            self._drafts.schedule(context.user, message)

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Stream the assistant's response to a widget action."""
        events = self._assistant(context).respond_to_action(Turn(thread, None, self.store, context), action)
        if events is not None:
            async for event in events:
                yield event
            return
        call = await self.store.add_before_call(thread.id, _hidden_action_item(thread, action, sender), context)
        async for event in self.respond(thread, None, context):
            yield event
            if call and isinstance(event, ThreadItemDoneEvent):  # the SDK has stored it after the call
                await self.store.move_to_end(thread.id, call, context)

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        """Update the widget, or store the action for the model's next turn."""
        widget = self._assistant(context).updated_widget(action)
        if sender is not None and widget is not None:
            item = sender.model_copy(update={"widget": widget})
            await self.store.save_item(thread.id, item, context)
            return SyncCustomActionResponse(updated_item=item)
        await self.store.add_before_call(thread.id, _hidden_action_item(thread, action, sender), context)
        return SyncCustomActionResponse()

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        if len(item_ids) > MAX_FEEDBACK_ITEMS:
            raise errors.InvalidRequestBody(f"feedback on more than {MAX_FEEDBACK_ITEMS} items")
        await self.store.save_feedback(thread_id, sorted(set(item_ids)), feedback, context)

    def _serialize(self, obj: BaseModel) -> bytes:
        return super()._serialize(in_utc(obj))

    def _get_attachment_store(self) -> Any:
        raise errors.AttachmentsOff("the request is about an attachment")

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        """Transcribe dictated audio with OpenAI."""
        if self._openai is None:
            raise errors.ApiKeyMissing("dictation needs OPENAI_API_KEY")
        if not _MEDIA_TYPE.fullmatch(audio_input.media_type):
            raise errors.InvalidRequestBody("the media type is not valid")
        file = ("audio." + audio_input.media_type.rpartition("/")[2], io.BytesIO(audio_input.data), audio_input.media_type)
        try:
            async with asyncio.timeout(TRANSCRIPTION_SECONDS):
                result = await self._openai.audio.transcriptions.create(model=TRANSCRIPTION_MODEL, file=file)
            return TranscriptionResult(text=result.text)
        except openai.APIStatusError as error:
            # The error's text is not logged: it quotes the key and the request.
            detail = f"transcription failed: OpenAI answered {error.status_code}{_openai_reference(error)}"
            if isinstance(error, openai.AuthenticationError):
                raise errors.OpenAIAuthenticationFailed(detail) from error
            if isinstance(error, openai.RateLimitError):
                raise errors.OpenAIRateLimited(detail) from error
            raise errors.OpenAIUnavailable(detail) from error
        except Exception as error:  # a timeout, a network error or an invalid response
            raise errors.OpenAIUnavailable("transcription failed") from error


def _hidden_action_item(thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None) -> HiddenContextItem:
    """Describe a widget action to the model, in an item that the user does not see."""
    widget = f"widget {sender.id}" if sender else "the page"
    return HiddenContextItem(
        id=new_id("message"),
        thread_id=thread.id,
        created_at=datetime.now(),  # noqa: DTZ005  as in the SDK's own items
        content=f"The user acted on {widget}: {action.type} with {action.payload}",
    )


def _title(message: UserMessageItem) -> str | None:
    """Return the beginning of the first message as the thread's title."""
    text = " ".join(user_text(message).split())
    if len(text) > MAX_GENERATED_TITLE:
        text = text[:MAX_GENERATED_TITLE].rsplit(" ", 1)[0] + "…"
    return text or None


def _api_error(error: Exception) -> errors.ApiError | None:
    """Convert an error that occurred before the response started, if the contract has one for it."""
    if isinstance(error, UNAVAILABLE):
        return errors.DatabaseUnavailable("the conversation could not be loaded or stored")
    if isinstance(error, NotFoundError):
        return errors.NotFound("no such thread, item or attachment of this user")
    if isinstance(error, ValueError):  # raised by the SDK for a request that its thread's state does not allow
        return errors.InvalidRequestBody("the request does not fit its thread")
    return None


_REFUSALS = (
    agents.InputGuardrailTripwireTriggered,
    agents.OutputGuardrailTripwireTriggered,
    agents.ToolInputGuardrailTripwireTriggered,
    agents.ToolOutputGuardrailTripwireTriggered,
    agents.ModelRefusalError,
)


def _openai_reference(error: openai.APIStatusError) -> str:
    """Return OpenAI's request id for the log, unless the header holds something else."""
    valid = error.request_id and re.fullmatch(r"[A-Za-z0-9_-]{1,80}", error.request_id)
    return f" (request {error.request_id})" if valid else ""


def _stream_error(error: BaseException) -> BaseStreamError:
    """Convert an exception of the assistant to an error for the user, without internal details."""
    if isinstance(error, BaseStreamError):
        return error
    if isinstance(error, _REFUSALS):
        log.info("a guardrail or the model refused to answer (%s)", type(error).__name__)
        return CustomStreamError("This can't be answered here.", allow_retry=False)
    if isinstance(error, openai.APIStatusError):
        # The error's text is not logged: it quotes the key and the request.
        log.error("the model's service answered %d%s", error.status_code, _openai_reference(error))
        if error.status_code == 429:
            return CustomStreamError("The assistant is busy. Please try again in a moment.", allow_retry=True)
        return StreamError(ErrorCode.STREAM_ERROR, allow_retry=error.status_code >= 500)
    if isinstance(error, openai.APIError | agents.ModelBehaviorError):
        # Their texts are not logged: they quote the service and the model's output.
        log.error("no answer from the model's service (%s)", type(error).__name__)
        return StreamError(ErrorCode.STREAM_ERROR, allow_retry=True)
    log.error("the assistant failed", exc_info=error)
    return StreamError(ErrorCode.STREAM_ERROR, allow_retry=True)
