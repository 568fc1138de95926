"""What a model gets to see of a long conversation.

The newest items, as long as they are at most ``MAX_ITEMS`` and what a model is given of them is at most ``MAX_CHARACTERS``
(roughly 25,000 tokens), beginning with a message of the user: an answer or a tool's result without what it answers confuses
models.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import dropwhile
from typing import Any

from chatkit.agents import ThreadItemConverter
from chatkit.conversation.storage import ChatContext, SqlStore
from chatkit.types import Attachment, HiddenContextItem, ThreadItem, UserMessageItem, UserMessageTagContent

MAX_ITEMS = 200
MAX_CHARACTERS = 100_000
IMAGE_CHARACTERS = 6_000  # what an image counts for, whatever its size in bytes: about 1,500 tokens at a model's full detail
ITEMS_A_PAGE = 25  # generated images are some megabytes each


class _Converter(ThreadItemConverter):
    """OpenAI's own conversion to a model's input, completed for what a page may send without being asked."""

    async def tag_to_message_content(self, tag: UserMessageTagContent) -> Any:
        return {"type": "input_text", "text": f"@{tag.text} stands for {tag.id}: {tag.data}"}

    async def attachment_to_message_content(self, attachment: Attachment) -> Any:
        return {"type": "input_text", "text": f"(a file named {attachment.name}, {attachment.mime_type}, not shown to you)"}

    async def hidden_context_to_input(self, item: HiddenContextItem) -> Any:
        return await super().hidden_context_to_input(item.model_copy(update={"content": str(item.content)}))


async def load_history(store: SqlStore, thread_id: str, context: ChatContext) -> list[ThreadItem]:
    """The items of a thread that a model gets to see, oldest first.

    The newest item and the user's newest message are always among them.
    """
    newest_first: list[ThreadItem] = []
    characters = 0
    asked = cut = False
    async for item in _newest_first(store, thread_id, context):
        characters += _characters(await to_model_input([item]))
        cut = cut or characters > MAX_CHARACTERS or len(newest_first) == MAX_ITEMS
        if cut and asked:
            break
        from_user = isinstance(item, UserMessageItem)
        if not cut or from_user or not newest_first:
            newest_first.append(item)
        asked = asked or from_user
    oldest_first = newest_first[::-1]
    if not cut:
        return oldest_first
    return list(dropwhile(lambda item: not isinstance(item, UserMessageItem), oldest_first)) or oldest_first[-1:]


async def _newest_first(store: SqlStore, thread_id: str, context: ChatContext) -> AsyncIterator[ThreadItem]:
    """At most ``MAX_ITEMS`` of the newest items, and one more that tells that there are more."""
    after: str | None = None
    for _ in range(0, MAX_ITEMS + 1, ITEMS_A_PAGE):
        page = await store.load_thread_items(thread_id, after, ITEMS_A_PAGE, "desc", context)
        for item in page.data:
            yield item
        if not page.has_more:
            return
        after = page.after


def _characters(given: Any) -> int:
    """How much of a model's context ``given`` takes."""
    if isinstance(given, str):
        return len(given)
    if isinstance(given, list):
        return sum(map(_characters, given))
    if isinstance(given, dict):
        return IMAGE_CHARACTERS if given.get("type") == "input_image" else sum(map(_characters, given.values()))
    return 0


async def to_model_input(items: list[ThreadItem]) -> list[Any]:
    """``items`` as the Agents SDK takes them."""
    converted: list[Any] = await _Converter().to_agent_input(items)
    return converted


async def to_model_text(message: UserMessageItem) -> str:
    """All that a model is given of the user's new message, as one text: what was typed, what it quotes, what it mentions."""
    parts = [part for given in await to_model_input([message]) for part in given["content"]]
    return "\n\n".join(part["text"] for part in parts)
