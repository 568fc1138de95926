"""A fake of OpenAI's API of stored conversations: threads and items in pages, as OpenAI's description has them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_openai import API_KEY
from tests.support.fake_server import Behaviour, Handler

BEGIN = 1_750_000_000  # the first thread's time; everything after it is a minute later than what was before


class Project:
    """The conversations of a project, and a ``Behaviour`` that serves them."""

    def __init__(self) -> None:
        self.threads: list[dict[str, Any]] = []
        self.items: dict[str, list[Any]] = {}
        self.faults: dict[int, Behaviour] = {}
        """What answers in place of the API, by the number of the request, from 1."""
        self.requests: list[str] = []
        self.largest_page = 100
        self._time = BEGIN
        self._lock = threading.Lock()

    def add(self, user: str, *items: dict[str, Any], **changes: Any) -> str:
        """A new thread with these items, which lack what all items have."""
        thread = {
            "id": f"cthr_{len(self.threads):048x}",
            "object": "chatkit.thread",
            "created_at": self._now(),
            "title": f"About {user}",
            "status": {"type": "active"},
            "user": user,
            **changes,
        }
        self.threads.append(thread)
        self.items[thread["id"]] = []
        for item in items:
            self.say(thread["id"], item)
        return str(thread["id"])

    def say(self, thread_id: str, item: dict[str, Any]) -> str:
        """Add an item to a thread."""
        stored = self.items[thread_id]
        base = {
            "id": f"cthi_{thread_id[-8:]}{len(stored):040x}",
            "object": "chatkit.thread_item",
            "created_at": self._now(),
            "thread_id": thread_id,
        }
        stored.append({**base, **item})
        return str(stored[-1]["id"])

    def _now(self) -> int:
        self._time += 60
        return self._time

    def __call__(self, handler: Handler) -> None:
        with self._lock:
            self.requests.append(handler.path)
            fault = self.faults.get(len(self.requests))
        if fault:
            return fault(handler)
        if handler.headers["Authorization"] != f"Bearer {API_KEY}" or handler.headers["OpenAI-Beta"] != "chatkit_beta=v1":
            return handler.respond(401, {"error": {"code": "invalid_api_key", "message": f"Incorrect: {API_KEY}"}})
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        match url.path.split("/")[1:]:
            case ["v1", "chatkit", "threads"]:
                owned = [thread for thread in self.threads if query.get("user") in (None, thread["user"])]
                return self._list(handler, owned, query)
            case ["v1", "chatkit", "threads", thread_id, "items"] if thread_id in self.items:
                return self._list(handler, self.items[thread_id], query)
        return handler.respond(404, {"error": {"code": "not_found", "message": "No such thing"}})

    def _list(self, handler: Handler, stored: Sequence[Any], query: dict[str, str]) -> None:
        limit = int(query.get("limit", 20))
        if limit > 100 or query.keys() - {"limit", "order", "after", "user"}:
            return handler.respond(400, {"error": {"code": "invalid_request_error"}})
        ordered = list(stored) if query.get("order") == "asc" else list(stored)[::-1]
        if "after" in query:
            ids = [_id(element) for element in ordered]
            if query["after"] not in ids:
                return handler.respond(400, {"error": {"code": "invalid_request_error"}})
            ordered = ordered[ids.index(query["after"]) + 1 :]
        page = ordered[: min(limit, self.largest_page)]
        more = len(page) < len(ordered)
        ends = {"first_id": _id(page[0]), "last_id": _id(page[-1])} if page else {"first_id": None, "last_id": None}
        body = {"object": "list", "data": page, **ends, "has_more": more}
        return handler.respond(200, json.dumps(body).encode())


def _id(element: Any) -> Any:
    return element.get("id") if isinstance(element, dict) else None


def asks(text: str, **changes: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "chatkit.user_message", "content": content, "attachments": [], "inference_options": None, **changes}


def answers(text: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": list(annotations)}]
    return {"type": "chatkit.assistant_message", "content": content}


URL = {"type": "url", "source": {"type": "url", "url": "https://example.com/a"}}
FILE = {"type": "file", "source": {"type": "file", "filename": "prices.pdf"}}
QUOTES = [{"type": "quoted_text", "text": "the first"}, {"type": "input_text", "text": "What of this?"}]
WIDGET = {"type": "Card", "key": "card", "children": [{"type": "Text", "value": "Hello"}]}
TOOL = {"call_id": "call_1", "name": "get_color", "arguments": '{"of": "sky"}'}

DESCRIBED: list[dict[str, Any]] = [
    asks("Hello"),
    answers("See there", URL, FILE),
    asks("", content=QUOTES, inference_options={"tool_choice": {"id": "search"}, "model": "gpt-5"}),
    {"type": "chatkit.client_tool_call", "status": "completed", "output": '{"color": "blue"}', **TOOL},
    {"type": "chatkit.client_tool_call", "status": "in_progress", "output": None, **TOOL, "call_id": "call_2"},
    {"type": "chatkit.widget", "widget": json.dumps(WIDGET)},
    {"type": "chatkit.task", "task_type": "custom", "heading": "Searching", "summary": "3 results"},
    {"type": "chatkit.task", "task_type": "thought", "heading": None, "summary": None},
    {"type": "chatkit.task_group", "tasks": [{"type": "thought", "heading": "First", "summary": "Then"}]},
    {
        "type": "chatkit.task_group",
        "tasks": [{"type": "thought", "heading": "A", "summary": "B"}, {"type": "custom", "heading": "C", "summary": None}],
    },
]
"""An item of each kind in OpenAI's description, with all that may be in it."""
