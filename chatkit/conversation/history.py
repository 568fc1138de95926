"""What a model gets to see of a long conversation.

The newest items, as long as they are at most ``MAX_ITEMS`` and together at most ``MAX_CHARACTERS`` of JSON (roughly 25,000
tokens), beginning with a message of the user: an answer or a tool's result without what it answers confuses models.
"""

from __future__ import annotations

from typing import Any

from chatkit.agents import ThreadItemConverter
from chatkit.conversation.storage import MAX_PAGE, ChatContext, SqlStore
from chatkit.types import Attachment, HiddenContextItem, ThreadItem, UserMessageItem, UserMessageTagContent

MAX_ITEMS = 200
MAX_CHARACTERS = 100_000


class _Converter(ThreadItemConverter):
    """OpenAI's own conversion to a model's input, completed for what a page may send without being asked."""

    async def tag_to_message_content(self, tag: UserMessageTagContent) -> Any:
        return {"type": "input_text", "text": f"@{tag.text} stands for {tag.id}: {tag.data}"}

    async def attachment_to_message_content(self, attachment: Attachment) -> Any:
        return {"type": "input_text", "text": f"(a file named {attachment.name}, {attachment.mime_type}, not shown to you)"}

    async def hidden_context_to_input(self, item: HiddenContextItem) -> Any:
        return await super().hidden_context_to_input(item.model_copy(update={"content": str(item.content)}))


async def load_history(store: SqlStore, thread_id: str, context: ChatContext) -> list[ThreadItem]:
    """The items of a thread that a model gets to see, oldest first."""
    newest: list[ThreadItem] = []
    characters = 0
    after: str | None = None
    while len(newest) < MAX_ITEMS:
        page = await store.load_thread_items(thread_id, after, MAX_PAGE, "desc", context)
        for item in page.data:
            characters += len(item.model_dump_json())
            if newest and (characters > MAX_CHARACTERS or len(newest) == MAX_ITEMS):
                return _from_first_message(newest)
            newest.append(item)
        if not page.has_more:
            return newest[::-1]
        after = page.after
    return _from_first_message(newest)


def _from_first_message(newest: list[ThreadItem]) -> list[ThreadItem]:
    """``newest`` turned round, without what stands before its first message of the user."""
    oldest_first = newest[::-1]
    for index, item in enumerate(oldest_first):
        if isinstance(item, UserMessageItem):
            return oldest_first[index:]
    return oldest_first[-1:]


async def to_model_input(items: list[ThreadItem]) -> list[Any]:
    """``items`` as the Agents SDK takes them."""
    converted: list[Any] = await _Converter().to_agent_input(items)
    return converted
