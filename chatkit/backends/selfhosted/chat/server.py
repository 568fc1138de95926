"""OpenAI's ChatKit server, with this service's storage and assistants behind it."""

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
from chatkit.backends.selfhosted.chat.context import ChatContext, current
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.events import message_text, text_of
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

TRANSCRIPTION_SECONDS = 60
MAX_TITLE = 60  # of one that we give
MAX_GIVEN_TITLE = 200
MAX_FEEDBACK_ITEMS = 100
MAX_ANSWERS = 100  # to the questions of a structured input
TRANSCRIPTION_MODEL = "gpt-4o-mini-transcribe"

_MEDIA_TYPE = re.compile(r"audio/[\w.+-]{1,50}", re.ASCII)

# The SDK makes this anew for each request, which takes longer than all the rest of handling one.
_request: TypeAdapter[Any] = TypeAdapter(ChatKitReq)


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def read_request(body: bytes) -> Any:
    """The ``ChatKitReq`` in ``body``. A title that is too long is cut.

    Raises:
        InvalidRequestBody: it is none, or asks for too much.
        NotFound: it names something by an id with a NUL, which PostgreSQL refuses to compare with anything.
    """
    try:
        chat_request = _request.validate_json(body)
    except ValidationError as error:
        raise errors.InvalidRequestBody("not a request of the ChatKit protocol") from error
    params = chat_request.params
    ids = [getattr(params, name, None) or "" for name in ("thread_id", "item_id", "attachment_id", "after")]
    if any("\0" in given for given in (*ids, *getattr(params, "item_ids", ()))):
        raise errors.NotFound("an id with a NUL")
    if len(getattr(getattr(params, "input", None), "answers", ())) > MAX_ANSWERS:
        raise errors.InvalidRequestBody(f"more than {MAX_ANSWERS} answers")
    if chat_request.type == "threads.update":
        params.title = params.title[:MAX_GIVEN_TITLE]
    return chat_request


class ChatServer(ChatKitServer[ChatContext]):
    """Handles the requests of the ChatKit protocol.

    Args:
        store: where threads are kept.
        assistants: who answers, by the name of the agent; ``None`` is for everybody else.
        turn_seconds: how long one answer may take.
        openai_client: for dictation, where there is a key.
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

    async def answer(self, request: Any, context: ChatContext) -> None:
        """Handle ``request`` and put the response into the context's buffer: JSON, or the events of a stream.

        Nothing is awaited between two events, so a task that is cancelled is always interrupted within OpenAI's server, which
        then keeps what was said so far.

        Raises:
            ApiError: the request can't be served; nothing has been put.
        """
        if getattr(getattr(request.params, "input", None), "attachments", None):
            raise errors.AttachmentsOff("a message with an attachment")
        put = context.buffer.put
        last: ThreadStreamEvent | None = None
        current.set(context)
        try:
            await self._refuse_unless_active(request, context)
            if request.type == "threads.retry_after_item":
                # The SDK reads all that comes after the message, and deletes one item after another.
                await self.store.delete_after(request.params.thread_id, request.params.item_id, context)
            if is_streaming_req(request):
                async with aclosing(self._process_streaming_impl(request, context)) as events:
                    async for event in events:
                        put(_event(self._serialize(event)))
                        last = event
            else:
                put(await self._process_non_streaming(request, context))
        except Exception as error:
            if last is not None:
                gone = isinstance(error, ThreadGone)  # which is logged already
                if not gone:
                    log.exception("a stream broke off")
                if not isinstance(last, ErrorEvent):
                    put(_event(self._serialize(ErrorEvent(code=ErrorCode.STREAM_ERROR, allow_retry=not gone))))
            elif api_error := _api_error(error):
                raise api_error from error
            else:
                raise  # an ApiError already, or an unhandled exception

    async def _refuse_unless_active(self, request: Any, context: ChatContext) -> None:
        """Refuse what is answered, now or later, where the thread is locked or closed; the SDK leaves that to its user."""
        if is_streaming_req(request) or request.type == "threads.sync_custom_action":
            thread_id = getattr(request.params, "thread_id", None)
            if thread_id and (await self.store.load_thread(thread_id, context)).status.type != "active":
                raise errors.ThreadNotActive("the thread is locked or closed")

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Let the assistant answer, within its time, and turn what goes wrong into ChatKit's error event."""
        if thread.title is None and input_user_message is not None:
            thread.title = _title(input_user_message)
        turn = Turn(thread, input_user_message, self.store, context)
        deadline = asyncio.get_running_loop().time() + self._turn_seconds
        said = ""
        try:
            async with aclosing(self._assistant(context).answer(turn)) as events:
                while (event := await self._next(events, deadline, said)) is not None:
                    context.started()
                    if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
                        said = message_text(event.item)
                    if isinstance(event, ThreadItemDoneEvent | ThreadItemReplacedEvent):
                        await self._drafts.finish([event.item.id])
                    elif isinstance(event, ThreadItemRemovedEvent):
                        await self._drafts.finish([event.item_id])
                    yield event
                    await context.buffer.room()
        finally:
            await self._drafts.finish(context.drafts)

    async def _next(self, events: AsyncGenerator[ThreadStreamEvent], deadline: float, said: str) -> ThreadStreamEvent | None:
        """The next of the assistant's ``events``, or ``None`` at their end.

        Whatever the assistant raises ends its turn alone, SystemExit and GeneratorExit included.

        Raises:
            BaseStreamError: what the user is told of it.
        """
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                return await anext(events, None)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise  # the reader cancelled it
            if isinstance(error, agents.ModelRefusalError) and said.endswith(error.refusal):
                log.info("the model refused")  # the refusal has been shown already
                return None
            if timeout.expired():
                log.warning("the answer took more than CHATKIT_TURN_SECONDS=%d", self._turn_seconds)
                raise CustomStreamError("The answer took too long. Please try again.", allow_retry=True) from error
            raise _stream_error(error) from error

    def _update_pending_items(self, pending_items: dict[str, ThreadItem], event: ThreadItemUpdatedEvent) -> None:
        """Have the message that ``event`` goes on with stored soon. The SDK calls this with each update."""
        super()._update_pending_items(pending_items, event)
        message = pending_items.get(event.item_id)
        if isinstance(message, AssistantMessageItem) and (context := current.get()):
            context.drafts.add(message.id)
            self._drafts.changed(context.user, message)

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncGenerator[ThreadStreamEvent]:
        """Let the assistant respond to what the user did with a widget."""
        events = self._assistant(context).answer_action(Turn(thread, None, self.store, context), action)
        if events is not None:
            async for event in events:
                yield event
            return
        call = await self.store.add_before_call(thread.id, _for_the_model(thread, action, sender), context)
        async for event in self.respond(thread, None, context):
            yield event
            if call and isinstance(event, ThreadItemDoneEvent):  # which the SDK has stored behind the call
                await self.store.move_to_end(thread.id, call, context)

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        """Change the widget, or keep the action for the model's next turn."""
        widget = self._assistant(context).updated_widget(action)
        if sender is not None and widget is not None:
            item = sender.model_copy(update={"widget": widget})
            await self.store.save_item(thread.id, item, context)
            return SyncCustomActionResponse(updated_item=item)
        await self.store.add_before_call(thread.id, _for_the_model(thread, action, sender), context)
        return SyncCustomActionResponse()

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        if len(item_ids) > MAX_FEEDBACK_ITEMS:
            raise errors.InvalidRequestBody(f"feedback on more than {MAX_FEEDBACK_ITEMS} items")
        await self.store.save_feedback(thread_id, sorted(set(item_ids)), feedback, context)

    def _serialize(self, obj: BaseModel) -> bytes:
        return super()._serialize(in_utc(obj))

    def _get_attachment_store(self) -> Any:
        raise errors.AttachmentsOff("a request about an attachment")

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        """What was said, by OpenAI's transcription, where there is a key for it."""
        if self._openai is None:
            raise errors.ApiKeyMissing("dictation needs OPENAI_API_KEY")
        if not _MEDIA_TYPE.fullmatch(audio_input.media_type):
            raise errors.InvalidRequestBody("a media type that is none")
        file = ("audio." + audio_input.media_type.rpartition("/")[2], io.BytesIO(audio_input.data), audio_input.media_type)
        try:
            async with asyncio.timeout(TRANSCRIPTION_SECONDS):
                result = await self._openai.audio.transcriptions.create(model=TRANSCRIPTION_MODEL, file=file)
            return TranscriptionResult(text=result.text)
        except openai.APIStatusError as error:
            # Its text quotes the key and what was sent.
            about = f"transcription failed: OpenAI answered {error.status_code}{_reference(error)}"
            if isinstance(error, openai.AuthenticationError):
                raise errors.OpenAIAuthenticationFailed(about) from error
            if isinstance(error, openai.RateLimitError):
                raise errors.OpenAIRateLimited(about) from error
            raise errors.OpenAIUnavailable(about) from error
        except Exception as error:  # no response in time, or a success that is no transcription
            raise errors.OpenAIUnavailable("transcription failed") from error


def _for_the_model(thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None) -> HiddenContextItem:
    """What the user did with a widget, as an item that only the model sees."""
    widget = f"widget {sender.id}" if sender else "the page"
    return HiddenContextItem(
        id=new_id("message"),
        thread_id=thread.id,
        created_at=datetime.now(),  # noqa: DTZ005  as the SDK's own items have it
        content=f"The user acted on {widget}: {action.type} with {action.payload}",
    )


def _title(message: UserMessageItem) -> str | None:
    """The beginning of the first message, as the thread's name in the history."""
    text = " ".join(text_of(message).split())
    if len(text) > MAX_TITLE:
        text = text[:MAX_TITLE].rsplit(" ", 1)[0] + "…"
    return text or None


def _api_error(error: Exception) -> errors.ApiError | None:
    """The row of the contract for what went wrong before anything was answered, where it has one."""
    if isinstance(error, UNAVAILABLE):
        return errors.DatabaseUnavailable("the conversation could not be reached")
    if isinstance(error, NotFoundError):
        return errors.NotFound("no such thread, item or attachment of this user")
    if isinstance(error, ValueError):  # how the SDK says that a request does not fit the state of its thread
        return errors.InvalidRequestBody("the request does not fit its thread")
    return None


_NOT_ANSWERED_HERE = (
    agents.InputGuardrailTripwireTriggered,
    agents.OutputGuardrailTripwireTriggered,
    agents.ToolInputGuardrailTripwireTriggered,
    agents.ToolOutputGuardrailTripwireTriggered,
    agents.ModelRefusalError,
)


def _reference(error: openai.APIStatusError) -> str:
    """What helps to find a call at OpenAI, if that is what their header has."""
    known = error.request_id and re.fullmatch(r"[A-Za-z0-9_-]{1,80}", error.request_id)
    return f" (request {error.request_id})" if known else ""


def _stream_error(error: BaseException) -> BaseStreamError:
    """What the user is told when an answer fails: nothing internal, and whether trying again makes sense."""
    if isinstance(error, BaseStreamError):
        return error
    if isinstance(error, _NOT_ANSWERED_HERE):
        log.info("a guardrail or the model refused to answer (%s)", type(error).__name__)
        return CustomStreamError("This can't be answered here.", allow_retry=False)
    if isinstance(error, openai.APIStatusError):
        # Its text quotes the key and what was sent, so only its kind is logged.
        log.error("the model's service answered %d%s", error.status_code, _reference(error))
        if error.status_code == 429:
            return CustomStreamError("The assistant is busy. Please try again in a moment.", allow_retry=True)
        return StreamError(ErrorCode.STREAM_ERROR, allow_retry=error.status_code >= 500)
    if isinstance(error, openai.APIError | agents.ModelBehaviorError):
        # Their texts quote the service's, and what the model said.
        log.error("no answer from the model's service (%s)", type(error).__name__)
        return StreamError(ErrorCode.STREAM_ERROR, allow_retry=True)
    log.error("the assistant failed", exc_info=error)
    return StreamError(ErrorCode.STREAM_ERROR, allow_retry=True)
