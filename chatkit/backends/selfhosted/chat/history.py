"""The part of a conversation that is sent to a model.

This is at most the newest ``MAX_ITEMS`` items and ``MAX_CHARACTERS`` characters (roughly 25,000 tokens), starting with a user
message: a reply or a tool result without its question confuses models. The newest generated images and attachments are
included, up to ``MAX_FILE_BYTES``; of older ones, the model is only told that there were some.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from datetime import datetime
from itertools import dropwhile
from typing import Any

from chatkit.agents import ThreadItemConverter
from chatkit.backends.selfhosted.chat.attachments import model_part
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
FILE_CHARACTERS = 30_000  # likewise of a file that is no text: some ten pages
FILE_BYTES_PER_CHARACTER = 20  # in Base64: of a PDF with some 60 KB per page, which costs about 1,000 tokens
MAX_FILE_CHARACTERS = 505_000  # of attachments: the ten files of a message, with their names
# In Base64: the files of a message, with their names. OpenAI accepts 50 MB per request; more would fail on every turn.
MAX_FILE_BYTES = 20_010_000
ITEMS_PER_PAGE = 25

_MODEL_PART = "chatkit.model_part"  # in the metadata of an attachment: what a model gets


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

    async def hidden_context_to_input(self, item: HiddenContextItem) -> Any:
        return await super().hidden_context_to_input(item.model_copy(update={"content": str(item.content)}))


async def load_history(store: SqlStore, thread_id: str, context: ChatContext) -> list[ThreadItem]:
    """Return the items of a thread to send to a model, oldest first, without messages that an input guardrail refused.

    They always include the newest item and the newest user message that was not refused.
    """
    newest_first: list[ThreadItem] = []
    characters = number = 0
    include_files = _FileInclusion(store, context)
    is_refused = _refused_messages()
    has_user_message = truncated = False
    async for loaded in _newest_first(store, thread_id, context):
        number += 1
        if is_refused(loaded):
            continue
        item = await include_files(loaded)
        words = item.model_copy(update={"attachments": []}) if isinstance(item, UserMessageItem) else item
        characters += count_characters(await to_model_input([words], words))
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


def _refused_messages() -> Callable[[ThreadItem], bool]:
    """Return a function that recognizes messages that a guardrail refused, and their marks. Call it with the newest first."""
    marked = False

    def is_refused(item: ThreadItem) -> bool:
        nonlocal marked
        if isinstance(item, SDKHiddenContextItem) and item.content == REFUSED:
            marked = True
            return True
        if marked and isinstance(item, UserMessageItem):
            marked = False
            return True
        return False

    return is_refused


class _FileInclusion:
    """Selects the generated images and the attachments to send to a model: the newest ``MAX_FILE_BYTES``.

    Attachments have ``MAX_FILE_CHARACTERS`` of their own, so that they don't displace the words of the conversation.
    Images get data URLs, and no URL if they are left out. Attachments get what ``attachment_to_message_content`` returns.
    """

    def __init__(self, store: SqlStore, context: ChatContext) -> None:
        self._store = store
        self._context = context
        self._left = MAX_FILE_BYTES
        self._characters_left = MAX_FILE_CHARACTERS

    async def __call__(self, item: ThreadItem) -> ThreadItem:
        """Return ``item``, or a copy of it with its files. Call it with the newest item first."""
        if isinstance(item, UserMessageItem) and item.attachments:
            return item.model_copy(update={"attachments": [await self._with_part(file) for file in item.attachments]})
        if not isinstance(item, GeneratedImageItem) or not item.image:
            return item
        url = await self._store.load_image(item.image.url, self._context) if self._left > 0 else ""
        self._left -= len(url)
        image = item.image.model_copy(update={"url": url if self._left >= 0 else ""})
        return item.model_copy(update={"image": image})

    async def _with_part(self, attachment: Attachment) -> Attachment:
        part = model_part(attachment, None)
        fits = self._left > 0 and self._characters_left > 0
        if fits and (content := await self._store.attachments.load_content(attachment.id, self._context)):
            # In a thread, because the encoding of some megabytes would block the event loop.
            whole = await asyncio.to_thread(model_part, attachment, content)
            self._left -= sum(map(len, whole.values()))
            self._characters_left -= count_characters(whole)
            if self._left >= 0 and self._characters_left >= 0:
                part = whole
        return attachment.model_copy(update={"metadata": {**(attachment.metadata or {}), _MODEL_PART: part}})


current_store: ContextVar[SqlStore | None] = ContextVar("current_store", default=None)
"""The store of the request that the current task handles, for ``to_agent_input``."""

_to_agent_input = ThreadItemConverter.to_agent_input


async def to_agent_input(converter: ThreadItemConverter, thread_items: Sequence[ThreadItem] | ThreadItem) -> list[Any]:
    """OpenAI's ``ThreadItemConverter.to_agent_input``, for every API, and for items that have the URLs of this service.

    OpenAI may not be able to fetch these. Images that exceed ``MAX_FILE_BYTES`` are left out, and messages that an input
    guardrail refused.
    """
    items = list(thread_items) if isinstance(thread_items, Sequence) else [thread_items]
    context, store = current_context.get(), current_store.get()
    if context and store:
        include, is_refused = _FileInclusion(store, context), _refused_messages()
        items = [await include(item) for item in reversed(items) if not is_refused(item)][::-1]
        items = [item for item in items if not (isinstance(item, GeneratedImageItem) and item.image and not item.image.url)]
    return [_for_every_api(converted) for converted in await _to_agent_input(converter, items)]


_attachment_to_message_content = ThreadItemConverter.attachment_to_message_content


async def attachment_to_message_content(converter: ThreadItemConverter, attachment: Attachment) -> Any:
    """OpenAI's ``ThreadItemConverter.attachment_to_message_content``, which leaves all attachments to its user."""
    part = (attachment.metadata or {}).get(_MODEL_PART)
    return part or await _attachment_to_message_content(converter, attachment)


def _for_every_api(converted: Any) -> Any:
    """Return an assistant's message with its text as one string, and a user's message without an empty text beside files.

    OpenAI's converter makes ``output_text`` parts, which the Agents SDK refuses for the Chat Completions API, and some
    providers refuse empty texts. What a converter has added to an assistant's text is left as it is.
    """
    parts = converted.get("content") if isinstance(converted, dict) else None
    if not isinstance(parts, list):
        return converted
    if converted.get("role") == "assistant" and all(_is_output_text(part) for part in parts):
        return {"type": "message", "role": "assistant", "content": "".join(part["text"] for part in parts)}
    if converted.get("role") == "user" and len(parts) > 1:
        return {**converted, "content": [part for part in parts if part != {"type": "input_text", "text": ""}]}
    return converted


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


def count_characters(value: Any, *, by_size: bool = False) -> int:
    """Return how many characters of a model's input ``value`` counts as.

    Args:
        value: a part of the input.
        by_size: whether a large file counts as more than ``FILE_CHARACTERS``, as a model's service counts it.
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(count_characters(part, by_size=by_size) for part in value)
    if not isinstance(value, dict):
        return 0
    kind = value.get("type")
    if kind == "input_image":
        return IMAGE_CHARACTERS
    if kind == "input_file":
        size = len(value.get("file_data") or "") if by_size else 0
        return max(FILE_CHARACTERS, size // FILE_BYTES_PER_CHARACTER)
    return sum(count_characters(part, by_size=by_size) for part in value.values())


def newest_user_message(items: list[ThreadItem]) -> ThreadItem | None:
    return next((item for item in reversed(items) if isinstance(item, UserMessageItem)), None)


async def to_model_input(items: list[ThreadItem], to_answer: ThreadItem | None) -> list[Any]:
    """Convert ``items`` to input for the Agents SDK. ``to_answer`` is the user message to answer."""
    return [_for_every_api(converted) for converted in await _to_agent_input(_Converter(to_answer), items)]


async def to_model_files(history: list[ThreadItem], message: UserMessageItem) -> list[Any]:
    """Convert the attachments of a message in ``history`` to parts of a message for the Agents SDK."""
    loaded = (item for item in history if isinstance(item, UserMessageItem) and item.id == message.id)
    converter = _Converter(message)
    return [await converter.attachment_to_message_content(file) for item in loaded for file in item.attachments]


async def to_model_text(message: UserMessageItem) -> str:
    """Convert a user message to one text, with its quotation and its mentions, and without its attachments."""
    without_files = message.model_copy(update={"attachments": []})
    parts = [part for converted in await to_model_input([without_files], without_files) for part in converted["content"]]
    return "\n\n".join(part["text"] for part in parts)
