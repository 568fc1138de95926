"""The offline demo, used when no agent and no API key are configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from chatkit.actions import Action
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.defaults import DefaultServer
from chatkit.backends.selfhosted.chat.events import assistant_message, user_text
from chatkit.backends.selfhosted.chat.history import load_history
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.titles import set_title
from chatkit.errors import CustomStreamError
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageContentPartAdded,
    AssistantMessageContentPartDone,
    AssistantMessageContentPartTextDelta,
    AssistantMessageItem,
    ClientToolCallItem,
    ProgressUpdateEvent,
    StructuredInput,
    StructuredInputFreeform,
    StructuredInputItem,
    StructuredInputMultipleChoice,
    StructuredInputMultipleChoiceOption,
    SyncCustomActionResponse,
    ThreadItem,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    WidgetItem,
)
from chatkit.widgets import DynamicWidgetRoot

SECONDS_PER_WORD = 0.03

INTRODUCTION = (
    "I am the demo assistant of this service. I work offline, without a model, and always give this reply. "
    "You said: “{said}”. "
    "To see what else a frontend can receive, write widget, progress, tool, question or error. "
    "For real replies set OPENAI_API_KEY or CHATKIT_AGENT."
)


class DemoServer(DefaultServer):
    """Chooses its response by a keyword in the message."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        set_title(thread, input_user_message)
        if input_user_message is None:
            last = (await load_history(self.store, thread.id, context))[-1]
            events = _speak(thread, _reply_to_page(last))
        else:
            said = user_text(input_user_message)
            respond = next((function for keyword, function in _RESPONSES.items() if keyword in said.lower()), None)
            names = ", ".join(attachment.name for attachment in input_user_message.attachments)
            reply = INTRODUCTION.format(said=said[:200]) + (f" You attached {names}." if names else "")
            events = respond(thread) if respond else _speak(thread, reply)
        async for event in events:
            yield event

    async def action(
        self,
        thread: ThreadMetadata,
        action: Action[str, Any],
        sender: WidgetItem | None,
        context: ChatContext,
    ) -> AsyncIterator[ThreadStreamEvent]:
        yield assistant_message(thread, f"Your page sent the action {action.type} with {action.payload}.")

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        """Count on the card that the action came from."""
        if sender is None or not isinstance(action.payload, dict):
            return await super().sync_action(thread, action, sender, context)
        pressed = action.payload.get("pressed")
        item = sender.model_copy(update={"widget": _widget(pressed if isinstance(pressed, int) else 0)})
        await self.store.save_item(thread.id, item, context)
        return SyncCustomActionResponse(updated_item=item)


def _reply_to_page(last: ThreadItem) -> str:
    if isinstance(last, ClientToolCallItem):
        return f"Your page answered the call of {last.name} with: {last.output}"
    if isinstance(last, StructuredInputItem):
        answers = [f"{question.question} {_format_answer(question)}" for question in last.inputs]
        return "Thank you. " + " ".join(answers)
    return "There is nothing new to reply to."


def _format_answer(question: Any) -> str:
    return ", ".join(question.answer.values) if question.answer and question.answer.values else "(skipped)"


async def _speak(thread: ThreadMetadata, text: str) -> AsyncIterator[ThreadStreamEvent]:
    """Stream a message word by word, as a model does."""
    whole: Any = assistant_message(thread, text).item
    empty = AssistantMessageItem(id=whole.id, thread_id=whole.thread_id, created_at=whole.created_at, content=[])
    yield ThreadItemAddedEvent(item=empty)
    part = AssistantMessageContentPartAdded(content_index=0, content=AssistantMessageContent(text=""))
    yield ThreadItemUpdatedEvent(item_id=whole.id, update=part)
    for number, word in enumerate(text.split(" ")):
        delta = AssistantMessageContentPartTextDelta(content_index=0, delta=f" {word}" if number else word)
        yield ThreadItemUpdatedEvent(item_id=whole.id, update=delta)
        await asyncio.sleep(SECONDS_PER_WORD)
    yield ThreadItemUpdatedEvent(
        item_id=whole.id, update=AssistantMessageContentPartDone(content_index=0, content=whole.content[0])
    )
    yield ThreadItemDoneEvent(item=whole)


def _item(thread: ThreadMetadata, kind: str) -> dict[str, Any]:
    return {"id": new_id(kind), "thread_id": thread.id, "created_at": datetime.now()}  # noqa: DTZ005


def _widget(pressed: int) -> DynamicWidgetRoot:
    """Return a card with two buttons: one gets a response in the chat, the other only updates the card."""
    press = {"type": "demo.press", "payload": {"pressed": pressed + 1}}
    return DynamicWidgetRoot.model_validate(
        {
            "type": "Card",
            "children": [
                {"type": "Title", "value": "A widget of the demo"},
                {"type": "Text", "value": f"Pressed {pressed} times"},
                {"type": "Button", "label": "Answer", "onClickAction": press},
                {"type": "Button", "label": "Count", "onClickAction": {**press, "streaming": False}},
            ],
        }
    )


async def _show_widget(thread: ThreadMetadata) -> AsyncIterator[ThreadStreamEvent]:
    yield ThreadItemDoneEvent(item=WidgetItem(**_item(thread, "message"), widget=_widget(0), copy_text="A widget of the demo"))


async def _show_progress(thread: ThreadMetadata) -> AsyncIterator[ThreadStreamEvent]:
    for text in ("Looking for something to do", "Doing it", "Nearly done"):
        yield ProgressUpdateEvent(text=text)
        await asyncio.sleep(10 * SECONDS_PER_WORD)
    async for event in _speak(thread, "That was a progress update."):
        yield event


async def _call_tool(thread: ThreadMetadata) -> AsyncIterator[ThreadStreamEvent]:
    call = ClientToolCallItem(
        **_item(thread, "tool_call"), call_id=new_id("tool_call"), name="demo_tool", arguments={"question": "What time is it?"}
    )
    yield ThreadItemDoneEvent(item=call)


async def _ask(thread: ThreadMetadata) -> AsyncIterator[ThreadStreamEvent]:
    options = [StructuredInputMultipleChoiceOption(value=value) for value in ("Tea", "Coffee")]
    questions: list[StructuredInput] = [
        StructuredInputMultipleChoice(id="drink", question="Tea or coffee?", options=options),
        StructuredInputFreeform(id="why", question="Why?"),
    ]
    yield ThreadItemDoneEvent(item=StructuredInputItem(**_item(thread, "message"), inputs=questions))


async def _fail(thread: ThreadMetadata) -> AsyncIterator[ThreadStreamEvent]:
    async for event in _speak(thread, "This reply ends in an error, as you asked for."):
        yield event
        if isinstance(event, ThreadItemAddedEvent):
            await asyncio.sleep(SECONDS_PER_WORD)
    raise CustomStreamError("An error of the demo. Please try again.", allow_retry=True)


_RESPONSES = {
    "widget": _show_widget,
    "progress": _show_progress,
    "tool": _call_tool,
    "question": _ask,
    "error": _fail,
}
