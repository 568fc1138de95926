"""What a model gets to see of a long conversation.

The newest items, as long as they are at most ``MAX_ITEMS`` and what a model is given of them is at most ``MAX_CHARACTERS``
(roughly 25,000 tokens), beginning with a message of the user: an answer or a tool's result without what it answers confuses
models. Of generated images the newest come along, up to ``MAX_IMAGE_BYTES``; of others a model is told that they were made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import dropwhile
from typing import Any

from chatkit.agents import ThreadItemConverter
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.types import (
    Attachment,
    GeneratedImageItem,
    HiddenContextItem,
    ThreadItem,
    UserMessageItem,
    UserMessageTagContent,
)

MAX_ITEMS = 200
MAX_CHARACTERS = 100_000
IMAGE_CHARACTERS = 6_000  # what an image counts for, whatever its size in bytes: about 1,500 tokens at a model's full detail
MAX_IMAGE_BYTES = 20_000_000  # OpenAI takes 50 MB in a request; a thread with more could never be answered again
ITEMS_A_PAGE = 25


class _Converter(ThreadItemConverter):
    """OpenAI's own conversion to a model's input, completed for what a page may send without being asked.

    Args:
        asking: the message of the user that is to be answered; what it quotes is given along.
    """

    def __init__(self, asking: ThreadItem | None) -> None:
        self._asking = asking
        self._tags: dict[str, dict[str, str]] = {}

    async def user_message_to_input(self, item: UserMessageItem, is_last_message: bool = True) -> Any:
        self._tags = {}
        for part in item.content:
            if isinstance(part, UserMessageTagContent):
                self._tags.setdefault(part.text, {})[part.id] = f"@{part.text} stands for {part.id}: {part.data}"
        # OpenAI's takes no message for the last one once there is a tool's output behind it.
        return await super().user_message_to_input(item, item is self._asking)

    async def tag_to_message_content(self, tag: UserMessageTagContent) -> Any:
        # OpenAI's asks once for each name, which several mentions may share.
        return {"type": "input_text", "text": "\n".join(self._tags[tag.text].values())}

    async def generated_image_to_input(self, item: GeneratedImageItem) -> Any:
        given: Any = await super().generated_image_to_input(item)
        if item.image and not item.image.url:
            given["content"] = given["content"][:1]
        return given

    async def attachment_to_message_content(self, attachment: Attachment) -> Any:
        return {"type": "input_text", "text": f"(a file named {attachment.name}, {attachment.mime_type}, not shown to you)"}

    async def hidden_context_to_input(self, item: HiddenContextItem) -> Any:
        return await super().hidden_context_to_input(item.model_copy(update={"content": str(item.content)}))


async def load_history(store: SqlStore, thread_id: str, context: ChatContext) -> list[ThreadItem]:
    """The items of a thread that a model gets to see, oldest first.

    The newest item and the user's newest message are always among them.
    """
    newest_first: list[ThreadItem] = []
    characters = image_bytes = 0
    asked = cut = False
    async for item in _newest_first(store, thread_id, context):
        characters += _characters(await to_model_input([item], item))
        if isinstance(item, GeneratedImageItem) and item.image:
            image_bytes += len(item.image.url)
            if image_bytes > MAX_IMAGE_BYTES:
                item.image.url = ""
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
    """About ``MAX_ITEMS`` of the newest items, and at least one more that tells that there are more."""
    after: str | None = None
    number = 0
    while number <= MAX_ITEMS:
        page = await store.load_thread_items(thread_id, after, ITEMS_A_PAGE, "desc", context)
        for item in page.data:
            yield item
        if not page.has_more:
            return
        number += len(page.data)
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


def newest_question(items: list[ThreadItem]) -> ThreadItem | None:
    """The user's newest message among ``items``."""
    return next((item for item in reversed(items) if isinstance(item, UserMessageItem)), None)


async def to_model_input(items: list[ThreadItem], asking: ThreadItem | None) -> list[Any]:
    """``items`` as the Agents SDK takes them, where ``asking`` is the message that is to be answered."""
    converted: list[Any] = await _Converter(asking).to_agent_input(items)
    return converted


async def to_model_text(message: UserMessageItem) -> str:
    """All that a model is given of the user's new message, as one text: what was typed, what it quotes, what it mentions."""
    parts = [part for given in await to_model_input([message], message) for part in given["content"]]
    return "\n\n".join(part["text"] for part in parts)
