"""Servers that an operator might name in ``CHATKIT_AGENT``, and some that can't be used.

Imported by the service only, because ``stream_agent_response`` is ours from the moment that it creates a server.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, ClassVar

import openai
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    RunErrorHandlerResult,
    Runner,
)
from agents.models import _openai_shared
from chatkit.actions import Action
from chatkit.agents import (
    AgentContext,
    ThreadItemConverter,
    stream_agent_response,
)
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore, Store
from chatkit.types import (
    ActiveStatus,
    AssistantMessageContent,
    AssistantMessageContentPartTextDelta,
    AssistantMessageItem,
    Attachment,
    AttachmentCreateParams,
    AttachmentUploadDescriptor,
    AudioInput,
    ErrorEvent,
    FeedbackKind,
    GeneratedImage,
    GeneratedImageItem,
    HiddenContextItem,
    ImageAttachment,
    LockedStatus,
    ProgressUpdateEvent,
    StreamOptions,
    SyncCustomActionResponse,
    Thread,
    ThreadItem,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    TranscriptionResult,
    UserMessageItem,
    UserMessageTagContent,
    WidgetItem,
)
from chatkit.widgets import DynamicWidgetRoot
from pydantic import AnyUrl
from starlette.exceptions import HTTPException  # the base class of FastAPI's

from chatkit.backends.selfhosted.chat import approvals
from chatkit.backends.selfhosted.chat.context import ChatContext
from tests.support import agents_elsewhere, agents_under_test, approving_agents
from tests.support.agents_under_test import seen, spoken


class Plain(ChatKitServer[ChatContext]):
    """The server of OpenAI's quickstart."""

    agent: ClassVar[Agent[Any]] = agents_under_test.simple
    converter: ClassVar[ThreadItemConverter] = ThreadItemConverter()

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        items = await self.store.load_thread_items(thread.id, after=None, limit=20, order="desc", context=context)
        messages = await self.converter.to_agent_input(items.data[::-1])
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        result = Runner.run_streamed(self.agent, messages, context=agent_context)
        async for event in stream_agent_response(agent_context, result):
            yield event


class Deleting(Plain):
    """Loads the conversation when it has been deleted."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert input_user_message
        after = input_user_message.id if input_user_message.content[0].text == "after" else None
        await self.store.delete_thread(thread.id, context)
        await self.store.load_thread_items(thread.id, after=after, limit=20, order="asc", context=context)
        yield ProgressUpdateEvent(text="It is still there.")


class Gathering(Plain):
    """Answers requests without a stream only when eight are waiting for that."""

    def __init__(self, store: Store[ChatContext]) -> None:
        super().__init__(store)
        self.barrier = asyncio.Barrier(8)

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        await self.barrier.wait()

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        await self.barrier.wait()
        return SyncCustomActionResponse()

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        await self.barrier.wait()
        return TranscriptionResult(text="Hello")


class RunningTwice(Plain):
    """Uses one context for two runs, one after the other."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        for _ in range(2):
            result = Runner.run_streamed(self.agent, "Hello", context=agent_context)
            async for event in stream_agent_response(agent_context, result):
                yield event


class WithTool(Plain):
    agent = agents_under_test.with_tool


class WithPage(Plain):
    agent = agents_under_test.with_page


class WithKnowingTool(Plain):
    agent = agents_under_test.knowing


class TagConverter(ThreadItemConverter):
    async def tag_to_message_content(self, tag: UserMessageTagContent) -> Any:
        return {"type": "input_text", "text": f"@{tag.text} stands for {tag.id}"}


class Able(Plain):
    agent = agents_under_test.able
    converter = TagConverter()


class Elsewhere(Plain):
    agent = agents_elsewhere.elsewhere
    converter = TagConverter()


class Guarded(Plain):
    agent = agents_under_test.guarded


class Explaining(Guarded):
    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        try:
            async for event in super().respond(thread, input_user_message, context):
                yield event
        except InputGuardrailTripwireTriggered as error:
            raise CustomStreamError("We don't talk about that.", allow_retry=False) from error


class Blocking(Plain):
    """Catches the guardrail's exception, as the examples of OpenAI's guides do."""

    agent = agents_under_test.guarded_from_the_start

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        try:
            async for event in super().respond(thread, input_user_message, context):
                yield event
        except InputGuardrailTripwireTriggered:
            yield ErrorEvent(message="We blocked that message for safety.")


class Drawing(Plain):
    agent = agents_under_test.drawing


class AskingExperts(Plain):
    agent = agents_under_test.asking_experts


class EndingWithATool(Plain):
    agent = agents_under_test.ending_with_a_tool


class Persistent(ChatKitServer[ChatContext]):
    """Has an error handler for runs that don't end, and for refusals of the model."""

    include_in_history = True

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)

        def give_up(data: Any) -> RunErrorHandlerResult:
            return RunErrorHandlerResult("Please ask for less.", include_in_history=self.include_in_history)

        result = Runner.run_streamed(
            agents_under_test.with_tool,
            "Go",
            context=agent_context,
            max_turns=2,
            error_handlers={"max_turns": give_up, "model_refusal": give_up},
        )
        async for event in approvals.run_events(agent_context, result):
            yield event


class Forgetful(Persistent):
    include_in_history = False


class WithoutApprovals(Plain):
    """Has a tool that needs approval, and nothing for it."""

    agent = approving_agents.careful


class WithItsOwnApprovals(ChatKitServer[ChatContext]):
    """Takes the state of a run that waits for an approval."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        result = Runner.run_streamed(approving_agents.careful, "Delete it", context=agent_context)
        async for event in stream_agent_response(agent_context, result):
            yield event
        seen.append(result.to_state())


class Locking(Plain):
    agent = agents_under_test.locking


class Reopening(Locking):
    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        thread.status = ActiveStatus()
        yield ThreadItemDoneEvent(item=message(thread, "Open again"))


class NotingConverter(ThreadItemConverter):
    async def assistant_message_to_input(self, item: AssistantMessageItem) -> Any:
        converted: Any = await super().assistant_message_to_input(item)
        converted["content"].append({"type": "output_text", "text": " (noted)"})
        return converted


class Noting(Plain):
    converter = NotingConverter()


def message(thread: ThreadMetadata, text: str, item_id: str = "msg_own") -> AssistantMessageItem:
    content = [AssistantMessageContent(text=text)] if text else []
    return AssistantMessageItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=content)  # noqa: DTZ005


class Knowing(ChatKitServer[ChatContext]):
    """Says what it knows of the request."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        seen.append((context, input_user_message))
        yield ThreadItemDoneEvent(item=message(thread, f"accept-language: {context.headers.get('accept-language')}"))


class Speaking(ChatKitServer[ChatContext]):
    """Says a word every 20 ms, and some of them are long."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        length = 100_000 if input_user_message and "long" in str(input_user_message.content) else 1
        yield ThreadItemAddedEvent(item=message(thread, ""))
        try:
            for _ in range(500):
                spoken.append("x" * length)
                update = AssistantMessageContentPartTextDelta(content_index=0, delta=spoken[-1])
                yield ThreadItemUpdatedEvent(item_id="msg_own", update=update)
                await asyncio.sleep(0.02)
        finally:
            seen.append("closed")

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[ThreadItem], context: ChatContext
    ) -> None:
        seen.append([item.id for item in pending_items])
        await super().handle_stream_cancelled(thread, pending_items, context)


class Discarding(Speaking):
    """Keeps nothing of a response that is stopped."""

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[ThreadItem], context: ChatContext
    ) -> None:
        seen.append("discarded")


class GivingUp(ChatKitServer[ChatContext]):
    """Begins a message, and says something else once it has been stored."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        yield ThreadItemAddedEvent(item=message(thread, "", "msg_given_up"))
        update = AssistantMessageContentPartTextDelta(content_index=0, delta="Well")
        yield ThreadItemUpdatedEvent(item_id="msg_given_up", update=update)
        while len((await self.store.load_thread_items(thread.id, None, 10, "asc", context)).data) < 2:
            await asyncio.sleep(0.05)
        yield ThreadItemDoneEvent(item=message(thread, "Something else"))


class Halving(ChatKitServer[ChatContext]):
    """Sends characters in halves of a surrogate pair, and some without the other half."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        thread.title = "Title \ud83d"
        yield ThreadItemDoneEvent(
            item=WidgetItem(
                id="msg_widget",
                thread_id=thread.id,
                created_at=datetime.now(),  # noqa: DTZ005
                widget=DynamicWidgetRoot.model_validate({"type": "Card", "children": [{"type": "Text", "value": "\ud83d"}]}),
            )
        )
        yield ThreadItemAddedEvent(item=message(thread, ""))
        for delta in ("Good \ud83d", "\ude00 day \ud83d"):
            update = AssistantMessageContentPartTextDelta(content_index=0, delta=delta)
            yield ThreadItemUpdatedEvent(item_id="msg_own", update=update)
            await asyncio.sleep(1.2)  # it is saved as it goes
        yield ThreadItemDoneEvent(item=message(thread, "Good \ud83d\ude00 day \ud83d"))

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        return TranscriptionResult(text="\ud83d")


class Unserializable(Plain):
    """Responds to an action with what is no JSON."""

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        widget = DynamicWidgetRoot.model_validate({"type": "Card", "children": [], "owner": object()})
        item = WidgetItem(id="msg_own", thread_id=thread.id, created_at=datetime.now(), widget=widget)  # noqa: DTZ005
        return SyncCustomActionResponse(updated_item=item)


class Hanging(ChatKitServer[ChatContext]):
    """Never comes to an end, in any of its methods."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        if input_user_message and "fine" in str(input_user_message.content):
            return
        yield ThreadItemAddedEvent(item=message(thread, ""))
        await asyncio.sleep(60)

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        async for event in self.respond(thread, None, context):
            yield event

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        await asyncio.sleep(60)

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        await asyncio.sleep(60)
        raise AssertionError

    async def handle_stream_cancelled(
        self, thread: ThreadMetadata, pending_items: list[ThreadItem], context: ChatContext
    ) -> None:
        seen.append("cancelled")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("given up")


class Lingering(ChatKitServer[ChatContext]):
    """Streams an image that is refused, and then takes long to clean up."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        image = GeneratedImage(id="image_1", url="data:text/html;base64,PGI+")
        item_id = self.store.generate_item_id("message", thread, context)
        now = datetime.now()  # noqa: DTZ005
        try:
            yield ThreadItemDoneEvent(item=GeneratedImageItem(id=item_id, thread_id=thread.id, created_at=now, image=image))
        finally:
            await asyncio.sleep(60)


class Failing(ChatKitServer[ChatContext]):
    """Fails in each of its methods, in the way that the message or the action names."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        said = str(input_user_message.content) if input_user_message else ""
        if "fine" in said:
            return
        if "locks" in said:
            thread.status = LockedStatus()
        _fail(said)
        yield ThreadItemAddedEvent(item=message(thread, ""))

    def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        _fail(action.type)
        return self.respond(thread, None, context)

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        _fail(action.type)
        return SyncCustomActionResponse()


def _fail(how: str) -> None:
    if "exit" in how:
        sys.exit("an internal detail")
    raise KeyError("an internal detail")


class AsksOpenAI(ChatKitServer[ChatContext]):
    """Calls OpenAI itself, in each of its methods. The request's metadata say what it does with an error."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        await _ask_openai(context)
        yield ThreadItemDoneEvent(item=message(thread, "OpenAI responded"))

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        await _ask_openai(context)
        return SyncCustomActionResponse()

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        await _ask_openai(context)

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        await _ask_openai(context)
        return TranscriptionResult(text="OpenAI responded")


async def _ask_openai(context: ChatContext) -> None:
    client = _openai_shared.get_default_openai_client()
    assert client is not None
    try:
        await client.with_options(max_retries=0).responses.create(model="gpt-test", input="Hello")
    except openai.APIError as error:
        if context.metadata.get("then") == "raise another":
            raise LookupError(f"OpenAI said {error}") from error
        if context.metadata.get("then") == "raise a group":
            raise ExceptionGroup(f"OpenAI said {error}", [error, KeyError("another")]) from None
        raise


class ClientError(Exception):
    """As those of HTTP clients."""

    status_code, detail, response = 403, "an internal detail", "the response"


REFUSALS = {
    "a message": CustomStreamError("This is too long.", allow_retry=True),
    "HTTPException": HTTPException(403, "This is another user's."),
    "HTTPException without a text": HTTPException(422, {"an internal": "detail"}),  # type: ignore[arg-type]
    "HTTPException 500": HTTPException(500, "an internal detail"),
    "of an HTTP client": ClientError(),
}


class Refusing(ChatKitServer[ChatContext]):
    """Refuses everything outside of streams, in the way that the request's metadata name."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        yield ThreadItemDoneEvent(item=message(thread, "Hello"))

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        raise REFUSALS[context.metadata["how"]]

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        raise REFUSALS[context.metadata["how"]]

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        raise REFUSALS[context.metadata["how"]]


class Overriding(ChatKitServer[ChatContext]):
    """Overrides everything that it may, and what OpenAI's package calls within itself."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        yield ThreadItemDoneEvent(item=message(thread, "Hello"))

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        yield ThreadItemDoneEvent(item=message(thread, f"{action.type} with {action.payload}", "msg_action"))

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        return SyncCustomActionResponse(updated_item=message(thread, action.type, "msg_sync"))

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        seen.append((thread_id, item_ids, feedback, context.user))

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        return TranscriptionResult(text=f"{audio_input.media_type} of {len(audio_input.data)} bytes")

    def get_stream_options(self, thread: ThreadMetadata, context: ChatContext) -> StreamOptions:
        return StreamOptions(allow_cancel=False)

    async def _build_user_message_item(self, input: Any, thread: ThreadMetadata, context: ChatContext) -> UserMessageItem:  # noqa: A002
        item: UserMessageItem = await super()._build_user_message_item(input, thread, context)
        return item.model_copy(update={"quoted_text": "added on the way in"})

    def _to_thread_response(self, thread: ThreadMetadata | Thread) -> Thread:
        response: Thread = super()._to_thread_response(thread)
        return response.model_copy(update={"title": "overridden"})


class Afterwards(ChatKitServer[ChatContext]):
    """Runs an agent in a task of its own, which goes on when the response has ended."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        self.task = asyncio.create_task(Runner.run(agents_under_test.simple, "Hello"))
        await asyncio.sleep(0.2)
        yield ThreadItemDoneEvent(item=message(thread, "Later"))


class WithStores(Plain):
    """The other constructor of the SDK's base class."""

    def __init__(self, store: Store[ChatContext], attachment_store: AttachmentStore[ChatContext] | None = None) -> None:
        super().__init__(store, attachment_store)


class _OwnFileStore(AttachmentStore[ChatContext]):
    """Keeps attachments elsewhere."""

    async def create_attachment(self, input: AttachmentCreateParams, context: ChatContext) -> Attachment:  # noqa: A002
        url = "https://files.example.com/1"
        upload = AttachmentUploadDescriptor(url=AnyUrl(url), method="PUT")
        return ImageAttachment(
            id="atc_elsewhere",
            name=input.name,
            mime_type=input.mime_type,
            upload_descriptor=upload,
            preview_url=AnyUrl(f"{url}/preview"),
        )

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        seen.append(attachment_id)


class _OwnFileConverter(ThreadItemConverter):
    async def attachment_to_message_content(self, attachment: Attachment) -> Any:
        return {"type": "input_text", "text": f"{attachment.name} is at the store"}


class OwnFiles(Plain):
    """Has an attachment store of its own."""

    converter = _OwnFileConverter()

    def __init__(self, store: Store[ChatContext]) -> None:
        super().__init__(store, _OwnFileStore())


class ReadsFiles(Plain):
    """Gives the model the sizes of files."""

    def __init__(self, store: Store[ChatContext]) -> None:
        super().__init__(store)
        self.files: Any = self.attachment_store

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        store = self.files

        class Converter(ThreadItemConverter):
            async def attachment_to_message_content(self, attachment: Attachment) -> Any:
                size = len(await store.load_bytes(attachment.id, context))
                return {"type": "input_text", "text": f"{size} bytes"}

        self.converter = Converter()  # type: ignore[misc]
        async for event in super().respond(thread, input_user_message, context):
            yield event


class Hidden(ChatKitServer[ChatContext]):
    """Adds an item itself, in the middle of a response, which stays hidden."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        hidden = HiddenContextItem(id="msg_hidden", thread_id=thread.id, created_at=datetime.now(), content="a note")  # noqa: DTZ005
        await self.store.add_thread_item(thread.id, hidden, context)
        for number, event in enumerate((ThreadItemAddedEvent, ThreadItemReplacedEvent, ThreadItemDoneEvent)):
            yield event(item=hidden.model_copy(update={"id": f"msg_hidden_{number}"}))
        yield ThreadItemDoneEvent(item=message(thread, "Noted"))

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        hidden = HiddenContextItem(id="msg_hidden", thread_id=thread.id, created_at=datetime.now(), content="a note")  # noqa: DTZ005
        return SyncCustomActionResponse(updated_item=hidden)


class Untidy(ChatKitServer[ChatContext]):
    """Makes data of the wrong types, which the message names."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        wrong: Any = ["wrong"]
        match input_user_message.content[0].text if input_user_message else "":
            case "title":
                thread.title = wrong
            case "status":
                thread.status = wrong
            case "item":
                yield ThreadItemDoneEvent(item=message(thread, "Wrong", "msg_1").model_copy(update={"created_at": wrong}))
            case "widget":
                widget = DynamicWidgetRoot.model_validate({"type": "Card", "children": []})
                widget.children = wrong
                now = datetime.now()  # noqa: DTZ005
                yield ThreadItemDoneEvent(item=WidgetItem(id="msg_1", thread_id=thread.id, created_at=now, widget=widget))
            case "no event":
                yield None  # type: ignore[misc]
        yield ThreadItemDoneEvent(item=message(thread, "Fine", self.store.generate_item_id("message", thread, context)))


class WithoutOptions(Plain):
    def get_stream_options(self, thread: ThreadMetadata, context: ChatContext) -> StreamOptions:
        raise CustomStreamError("No options today")


class Processing(Plain):
    async def process(self, request: str | bytes | bytearray, context: ChatContext) -> Any:
        return await super().process(request, context)


class Streaming(Plain):
    async def _process_streaming(self, request: Any, context: ChatContext) -> Any:
        async for data in super()._process_streaming(request, context):
            yield data


class WithItsOwnStore(Plain):
    def __init__(self, store: Store[ChatContext]) -> None:
        super().__init__(agents_under_test)  # type: ignore[arg-type]


class WithoutBase(Plain):
    def __init__(self, store: Store[ChatContext]) -> None:
        pass


class NeedsMore(Plain):
    def __init__(self, store: Store[ChatContext], more: int) -> None:
        super().__init__(store)


class Incomplete(ChatKitServer[ChatContext]):
    """Has no ``respond``."""
