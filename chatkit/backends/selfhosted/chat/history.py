"""The part of a conversation that is sent to a model.

This is at most the newest ``MAX_ITEMS`` items and ``MAX_CHARACTERS`` characters (roughly 25,000 tokens), starting with a user
message: a reply or a tool result without its question confuses models. The newest generated images are included, up to
``MAX_IMAGE_BYTES``; of older ones, the model is only told that they were generated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from datetime import datetime
from itertools import dropwhile
from typing import Any

from chatkit.agents import ThreadItemConverter
from chatkit.backends.selfhosted.chat.context import ChatContext, current_context
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.sessions import REFUSED
from chatkit.types import (
    Attachment,
    GeneratedImageItem,
    HiddenContextItem,
    SDKHiddenContextItem,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    UserMessageTagContent,
)

MAX_ITEMS = 200
MAX_CHARACTERS = 100_000
IMAGE_CHARACTERS = 6_000  # the weight of an image of any size: about 1,500 tokens at full detail
MAX_IMAGE_BYTES = 20_000_000  # OpenAI accepts 50 MB per request; a longer thread would fail on every turn
ITEMS_PER_PAGE = 25


class _Converter(ThreadItemConverter):
    """OpenAI's conversion to model input, extended with the item types that it leaves to its user.

    Args:
        to_answer: the user message to answer; its quotation is included.
    """

    def __init__(self, to_answer: ThreadItem | None) -> None:
        self._to_answer = to_answer
        self._tags: dict[str, dict[str, str]] = {}

    async def user_message_to_input(self, item: UserMessageItem, is_last_message: bool = True) -> Any:
        self._tags = {}
        for part in item.content:
            if isinstance(part, UserMessageTagContent):
                self._tags.setdefault(part.text, {})[part.id] = f"@{part.text} stands for {part.id}: {part.data}"
        # OpenAI's converter treats no message as the last one if a tool's output follows it.
        return await super().user_message_to_input(item, item is self._to_answer)

    async def tag_to_message_content(self, tag: UserMessageTagContent) -> Any:
        # OpenAI's converter calls this once for each name, which several mentions may share.
        return {"type": "input_text", "text": "\n".join(self._tags[tag.text].values())}

    async def generated_image_to_input(self, item: GeneratedImageItem) -> Any:
        converted: Any = await super().generated_image_to_input(item)
        if item.image and not item.image.url:
            converted["content"] = converted["content"][:1]
        return converted

    async def attachment_to_message_content(self, attachment: Attachment) -> Any:
        return {"type": "input_text", "text": f"(a file named {attachment.name}, {attachment.mime_type}, not shown to you)"}

    async def hidden_context_to_input(self, item: HiddenContextItem) -> Any:
        return await super().hidden_context_to_input(item.model_copy(update={"content": str(item.content)}))


async def load_history(store: SqlStore, thread_id: str, context: ChatContext) -> list[ThreadItem]:
    """Return the items of a thread to send to a model, oldest first, without messages that an input guardrail refused.

    They always include the newest item and the newest user message that was not refused.
    """
    newest_first: list[ThreadItem] = []
    characters = number = 0
    include_image = _ImageInclusion(store, context)
    has_user_message = truncated = refused = False
    async for loaded in _newest_first(store, thread_id, context):
        number += 1
        if isinstance(loaded, SDKHiddenContextItem) and loaded.content == REFUSED:
            refused = True
            continue
        if refused and isinstance(loaded, UserMessageItem):
            refused = False
            continue
        item = await include_image(loaded)
        characters += count_characters(await to_model_input([item], item))
        truncated = truncated or characters > MAX_CHARACTERS or number > MAX_ITEMS
        if truncated and has_user_message:
            break
        from_user = isinstance(item, UserMessageItem)
        if not truncated or from_user or not newest_first:
            newest_first.append(item)
        has_user_message = has_user_message or from_user
    oldest_first = newest_first[::-1]
    if not truncated:
        return oldest_first
    return list(dropwhile(lambda item: not isinstance(item, UserMessageItem), oldest_first)) or oldest_first[-1:]


def refusal(thread: ThreadMetadata) -> SDKHiddenContextItem:
    """Return the mark that an input guardrail refused the newest user message of ``thread``.

    Guardrails and the model would get the message again with each later one.
    """
    item_id = new_id("sdk_hidden_context")
    return SDKHiddenContextItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=REFUSED)  # noqa: DTZ005


class _ImageInclusion:
    """Selects the generated images to send to a model: the newest ``MAX_IMAGE_BYTES``, as data URLs. The others get no URL."""

    def __init__(self, store: SqlStore, context: ChatContext) -> None:
        self._store = store
        self._context = context
        self._left = MAX_IMAGE_BYTES

    async def __call__(self, item: ThreadItem) -> ThreadItem:
        """Return ``item``, or a copy of it with another URL. Call it with the newest item first."""
        if not isinstance(item, GeneratedImageItem) or not item.image:
            return item
        url = await self._store.load_image(item.image.url, self._context) if self._left > 0 else ""
        self._left -= len(url)
        image = item.image.model_copy(update={"url": url if self._left >= 0 else ""})
        return item.model_copy(update={"image": image})


current_store: ContextVar[SqlStore | None] = ContextVar("current_store", default=None)
"""The store of the request that the current task handles, for ``to_agent_input``."""

_to_agent_input = ThreadItemConverter.to_agent_input


async def to_agent_input(converter: ThreadItemConverter, thread_items: Sequence[ThreadItem] | ThreadItem) -> list[Any]:
    """OpenAI's ``ThreadItemConverter.to_agent_input``, for every API, and for items that have the URLs of this service.

    OpenAI may not be able to fetch these. Images that exceed ``MAX_IMAGE_BYTES`` are left out.
    """
    items = list(thread_items) if isinstance(thread_items, Sequence) else [thread_items]
    context, store = current_context.get(), current_store.get()
    if context and store:
        include = _ImageInclusion(store, context)
        items = [await include(item) for item in reversed(items)][::-1]
        items = [item for item in items if not (isinstance(item, GeneratedImageItem) and item.image and not item.image.url)]
    return [_with_plain_text(converted) for converted in await _to_agent_input(converter, items)]


def _with_plain_text(converted: Any) -> Any:
    """Return an assistant's message with its text as one string, unless a converter has added something else to it.

    OpenAI's converter makes ``output_text`` parts, which the Agents SDK refuses for the Chat Completions API.
    """
    parts = converted.get("content") if isinstance(converted, dict) and converted.get("role") == "assistant" else None
    if not isinstance(parts, list) or not all(_is_output_text(part) for part in parts):
        return converted
    return {"type": "message", "role": "assistant", "content": "".join(part["text"] for part in parts)}


def _is_output_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "output_text"


async def _newest_first(store: SqlStore, thread_id: str, context: ChatContext) -> AsyncIterator[ThreadItem]:
    """Yield the newest items, more than ``MAX_ITEMS`` if there are more, so that truncation is detected."""
    after: str | None = None
    number = 0
    while number <= MAX_ITEMS:
        page = await store.load_thread_items(thread_id, after, ITEMS_PER_PAGE, "desc", context)
        for item in page.data:
            yield item
        if not page.has_more:
            return
        number += len(page.data)
        after = page.after


def count_characters(value: Any) -> int:
    """Return how many characters of a model's input ``value`` counts as."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(count_characters, value))
    if isinstance(value, dict):
        return IMAGE_CHARACTERS if value.get("type") == "input_image" else sum(map(count_characters, value.values()))
    return 0


def newest_user_message(items: list[ThreadItem]) -> ThreadItem | None:
    return next((item for item in reversed(items) if isinstance(item, UserMessageItem)), None)


async def to_model_input(items: list[ThreadItem], to_answer: ThreadItem | None) -> list[Any]:
    """Convert ``items`` to input for the Agents SDK. ``to_answer`` is the user message to answer."""
    return [_with_plain_text(converted) for converted in await _to_agent_input(_Converter(to_answer), items)]


async def to_model_text(message: UserMessageItem) -> str:
    """Convert a user message to one text, with its quotation and its mentions."""
    parts = [part for converted in await to_model_input([message], message) for part in converted["content"]]
    return "\n\n".join(part["text"] for part in parts)
