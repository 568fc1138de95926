"""The offline demo assistant, used when no agent and no API key are configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from chatkit.actions import Action
from chatkit.backends.selfhosted.chat.events import assistant_message, user_text
from chatkit.backends.selfhosted.chat.store import new_id
from chatkit.backends.selfhosted.chat.turn import Assistant, Turn
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
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadStreamEvent,
    WidgetItem,
)
from chatkit.widgets import DynamicWidgetRoot

SECONDS_PER_WORD = 0.03

INTRODUCTION = (
    "I am the demo assistant of this service: no model is behind me, I work offline and say the same to everyone. "
    "You said: “{said}”. "
    "To see what a frontend can be sent, write widget, progress, tool, question or error. "
    "For real answers set OPENAI_API_KEY or CHATKIT_AGENT."
)


class DemoAssistant(Assistant):
    """Chooses its response by a keyword in the message."""

    async def respond(self, turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
        if turn.message is None:
            events = self._respond_to_page(turn)
        else:
            said = user_text(turn.message)
            respond = next((function for keyword, function in _RESPONSES.items() if keyword in said.lower()), None)
            events = respond(turn) if respond else _speak(turn, INTRODUCTION.format(said=said[:200]))
        async for event in events:
            yield event

    async def respond_to_action(self, turn: Turn, action: Action[str, Any]) -> AsyncGenerator[ThreadStreamEvent]:
        text = f"Your page sent the action {action.type} with {action.payload}."
        yield assistant_message(turn.thread, turn.store, turn.context, text)

    def updated_widget(self, action: Action[str, Any]) -> DynamicWidgetRoot | None:
        if not isinstance(action.payload, dict):
            return None
        pressed = action.payload.get("pressed")
        return _widget(pressed if isinstance(pressed, int) else 0)

    async def _respond_to_page(self, turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
        last = (await turn.history())[-1]
        if isinstance(last, ClientToolCallItem):
            text = f"Your page answered the call of {last.name} with: {last.output}"
        elif isinstance(last, StructuredInputItem):
            answers = [f"{question.question} {_format_answer(question)}" for question in last.inputs]
            text = "Thank you. " + " ".join(answers)
        else:
            text = "There is nothing new to answer."
        async for event in _speak(turn, text):
            yield event


def _format_answer(question: Any) -> str:
    return ", ".join(question.answer.values) if question.answer and question.answer.values else "(skipped)"


async def _speak(turn: Turn, text: str) -> AsyncGenerator[ThreadStreamEvent]:
    """Stream a message word by word, as a model does."""
    whole: Any = assistant_message(turn.thread, turn.store, turn.context, text).item
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


def _item(turn: Turn, kind: str) -> dict[str, Any]:
    return {"id": new_id(kind), "thread_id": turn.thread.id, "created_at": datetime.now()}  # noqa: DTZ005


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


async def _show_widget(turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
    yield ThreadItemDoneEvent(item=WidgetItem(**_item(turn, "message"), widget=_widget(0), copy_text="A widget of the demo"))


async def _show_progress(turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
    for text in ("Looking for something to do", "Doing it", "Nearly done"):
        yield ProgressUpdateEvent(text=text)
        await asyncio.sleep(10 * SECONDS_PER_WORD)
    async for event in _speak(turn, "That was a progress update."):
        yield event


async def _call_tool(turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
    call = ClientToolCallItem(
        **_item(turn, "tool_call"), call_id=new_id("tool_call"), name="demo_tool", arguments={"question": "What time is it?"}
    )
    yield ThreadItemDoneEvent(item=call)


async def _ask(turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
    options = [StructuredInputMultipleChoiceOption(value=value) for value in ("Tea", "Coffee")]
    questions: list[StructuredInput] = [
        StructuredInputMultipleChoice(id="drink", question="Tea or coffee?", options=options),
        StructuredInputFreeform(id="why", question="Why?"),
    ]
    yield ThreadItemDoneEvent(item=StructuredInputItem(**_item(turn, "message"), inputs=questions))


async def _fail(turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
    async for event in _speak(turn, "This answer ends in an error, as you asked for."):
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
