"""Default implementations of the methods that a ``ChatKitServer`` does not override."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import openai
from agents.models.openai_responses import ResponsesWebSocketError

from chatkit.actions import Action
from chatkit.backends.selfhosted.chat.attachments import Attachments
from chatkit.backends.selfhosted.chat.composer import Composer
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.events import assistant_text
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.titles import Titles
from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore
from chatkit.types import (
    AssistantMessageItem,
    AudioInput,
    FeedbackKind,
    HiddenContextItem,
    SyncCustomActionResponse,
    ThreadItem,
    ThreadItemDoneEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    TranscriptionResult,
    WidgetItem,
)
from chatkit.web import errors

TRANSCRIPTION_SECONDS = 60
BYTES_PER_CHARACTER = 100  # of a recording: some KB per second, which costs about ten tokens

_MEDIA_TYPE = re.compile(r"audio/(?:x-|vnd\.)?([a-z0-9.+-]{1,50})", re.ASCII | re.IGNORECASE)
_EXTENSIONS = {"wave": "wav"}  # otherwise the subtype is the extension
_NOT_TRANSCRIBED = "This recording can't be transcribed"


@dataclass(frozen=True)
class Resources:
    """What the servers of a process share."""

    store: SqlStore
    attachments: Attachments
    drafts: Drafts
    runs: Runs
    composer: Composer
    titles: Titles
    turn_seconds: int
    """The time limit of a response."""
    openai_client: openai.AsyncOpenAI | None
    """``None`` without an API key."""
    transcription_model: str


class DefaultServer(ChatKitServer[ChatContext]):
    """The base of this service's own servers. Also a base of each operator's class, see ``server.guarded``."""

    store: SqlStore
    _chatkit_resources: Resources

    def __init__(self, store: SqlStore, attachment_store: AttachmentStore[ChatContext] | None = None) -> None:
        super().__init__(store, self._chatkit_resources.attachments if attachment_store is None else attachment_store)

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Tell the model about a widget action, and stream its response."""
        call = await self.store.add_before_call(thread.id, _hidden_action_item(thread, action, sender), context)
        async for event in self.respond(thread, None, context):
            yield event
            if call and isinstance(event, ThreadItemDoneEvent):  # the SDK has stored it after the call
                await self.store.move_to_end(thread.id, call, context)

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        """Store the action for the model's next turn."""
        await self.store.add_before_call(thread.id, _hidden_action_item(thread, action, sender), context)
        return SyncCustomActionResponse()

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[ThreadItem], context: ChatContext
    ) -> None:
        """Store the unfinished messages. If the user stopped the response, the SDK tells that to the model as well."""
        if not context.buffer.interrupted:
            await super().handle_stream_cancelled(thread, pending_items, context)
            return
        for item in pending_items:
            if isinstance(item, AssistantMessageItem) and assistant_text(item).strip():
                await self.store.save_item(thread.id, item, context)

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        await self.store.save_feedback(thread_id, item_ids, feedback, context)

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        """Transcribe dictated audio with OpenAI."""
        client = self._chatkit_resources.openai_client
        if client is None:
            raise errors.ApiKeyMissing("dictation needs OPENAI_API_KEY")
        media_type = audio_input.media_type.strip().lower()
        format_ = _MEDIA_TYPE.fullmatch(media_type)
        if not format_:
            raise errors.InvalidRequestBody("the media type is not valid")
        if not audio_input.data:
            raise errors.RequestRefused("the recording is empty", message=_NOT_TRANSCRIBED)
        # OpenAI tells the format by the extension.
        file = (f"audio.{_EXTENSIONS.get(format_[1], format_[1])}", io.BytesIO(audio_input.data), media_type)
        model = self._chatkit_resources.transcription_model
        context.usage.begin_call("Dictation", len(audio_input.data) // BYTES_PER_CHARACTER)
        try:
            async with asyncio.timeout(TRANSCRIPTION_SECONDS):
                result = await client.audio.transcriptions.create(model=model, file=file)
            context.usage.add("Dictation", 1, result.usage)
            return TranscriptionResult(text=result.text)
        except asyncio.CancelledError as error:
            context.usage.abort_calls(error)  # OpenAI goes on, and bills it
            raise
        except openai.BadRequestError as error:  # usually the recording is too short or damaged
            detail = f"transcription failed: {_answered(error)}"
            raise errors.RequestRefused(detail, message=_NOT_TRANSCRIBED) from error
        except Exception as error:  # also a timeout or an invalid response
            context.usage.abort_calls(error)
            raise openai_error(error, "transcription failed") from error


def openai_error(error: Exception, what: str) -> errors.ApiError:
    """Return the contract's error for ``error``, which a call to OpenAI raised. ``what`` is for the log.

    The error's text is not logged: it quotes the key and the request.
    """
    if not isinstance(error, openai.APIStatusError):
        return errors.OpenAIUnavailable(what)
    detail = f"{what}: {_answered(error)}"
    if isinstance(error, openai.AuthenticationError):
        return errors.OpenAIAuthenticationFailed(detail)
    if isinstance(error, openai.RateLimitError):
        return errors.OpenAIRateLimited(detail)
    return errors.OpenAIUnavailable(detail)


def _answered(error: openai.APIStatusError) -> str:
    return f"OpenAI answered {error.status_code}{openai_reference(error)}"


def openai_reference(error: openai.APIStatusError | ResponsesWebSocketError) -> str:
    """Return OpenAI's request id and error code for the log, unless they hold something else."""
    parts = []
    if error.request_id and re.fullmatch(r"[A-Za-z0-9_-]{1,80}", error.request_id):
        parts.append(f"request {error.request_id}")
    if error.code and re.fullmatch(r"[a-z_]{1,60}", error.code):
        parts.append(error.code)
    return f" ({', '.join(parts)})" if parts else ""


def _hidden_action_item(thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None) -> HiddenContextItem:
    """Describe a widget action to the model, in an item that the user does not see."""
    widget = f"widget {sender.id}" if sender else "the page"
    return HiddenContextItem(
        id=new_id("message"),
        thread_id=thread.id,
        created_at=datetime.now(),  # noqa: DTZ005  as in the SDK's own items
        content=f"The user acted on {widget}: {action.type} with {action.payload}",
    )
