"""Every request type of the ChatKit protocol, and functions that change any of its fields."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

from chatkit.types import ChatKitReq

from tests.support.chat import user_input

REQUEST_TYPES = {model.model_fields["type"].default for model in get_args(get_args(ChatKitReq)[0])}
ACTION = {"type": "demo.press", "payload": {}}
PROTOCOL: dict[str, dict[str, Any]] = {
    "threads.create": {"input": user_input("progress"), "metadata": {"x": "y"}},
    "threads.add_user_message": {
        "thread_id": "T",
        "input": {**user_input("progress"), "quoted_text": "q"},
    },
    "threads.add_client_tool_output": {"thread_id": "T", "result": {"x": "y"}},
    "threads.add_structured_input": {"thread_id": "T", "item_id": "I", "input": {"x": "y"}},
    "threads.retry_after_item": {"thread_id": "T", "item_id": "I"},
    "threads.custom_action": {"thread_id": "T", "item_id": "I", "action": ACTION},
    "threads.sync_custom_action": {"thread_id": "T", "item_id": "I", "action": ACTION},
    "threads.get_by_id": {"thread_id": "T"},
    "threads.list": {"limit": 100, "order": "asc", "after": "T"},
    "threads.update": {"thread_id": "T", "title": "mine now"},
    "threads.delete": {"thread_id": "T"},
    "items.list": {"thread_id": "T", "limit": 100, "order": "asc", "after": "I"},
    "items.feedback": {"thread_id": "T", "item_ids": ["I"], "kind": "negative"},
    "attachments.create": {"name": "a.txt", "size": 1, "mime_type": "text/plain"},
    "attachments.delete": {"attachment_id": "A"},
    "input.transcribe": {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"},
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value that is neither an object nor an array."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from leaves(item, (*path, key))
    if not isinstance(value, dict | list):
        yield path


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return changed
