"""A caller of the self-hosted chat over real HTTP, which parses responses with OpenAI's models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import requests
from chatkit.types import Page, Thread, ThreadItem, ThreadStreamEvent
from pydantic import TypeAdapter

_event: TypeAdapter[Any] = TypeAdapter(ThreadStreamEvent)
_items: TypeAdapter[Any] = TypeAdapter(Page[ThreadItem])


def user_input(text: str, attachments: Sequence[str] = (), **inference_options: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"content": content, "attachments": [*attachments], "inference_options": inference_options}


class Caller:
    """A visitor, or the user of ``token``, with a session."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.http = requests.Session()
        self.token = token
        self.refresh()

    def refresh(self) -> None:
        """Get a new secret for the same user."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        response = self.http.post(f"{self.url}/api/chatkit/sessions", headers=headers, timeout=30)
        assert response.status_code == 200, response.text
        self.secret: str = response.json()["data"]["client_secret"]

    def post(self, type_: str, **params: Any) -> requests.Response:
        """Send a request and return the response."""
        return self.send({"type": type_, "params": params})

    def send(self, body: Any, *, stream: bool = False, **headers: str) -> requests.Response:
        sent = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json", **headers}
        return self.http.post(f"{self.url}/api/chatkit", data=json.dumps(body), headers=sent, timeout=60, stream=stream)

    def stream(self, type_: str, **params: Any) -> Iterator[Any]:
        """Send a request and yield the events of the stream as they arrive."""
        with self.send({"type": type_, "params": params}, stream=True) as response:
            assert response.status_code == 200, response.text
            assert response.headers["Content-Type"].startswith("text/event-stream")
            for line in response.iter_lines(1024 * 1024):  # an event may contain an image
                if line.startswith(b"data: "):
                    yield _event.validate_json(line[6:])

    def create(self, text: str, *attachments: str) -> tuple[str, list[Any]]:
        """Create a thread. Return its id and all events of the first turn."""
        events = list(self.stream("threads.create", input=user_input(text, attachments)))
        assert events[0].type == "thread.created"
        return events[0].thread.id, events

    def say(self, thread_id: str, text: str, *attachments: str) -> list[Any]:
        return list(self.stream("threads.add_user_message", thread_id=thread_id, input=user_input(text, attachments)))

    def items(self, thread_id: str, **params: Any) -> Any:
        response = self.post("items.list", thread_id=thread_id, **params)
        assert response.status_code == 200, response.text
        return _items.validate_json(response.content)

    def thread(self, thread_id: str) -> Thread:
        response = self.post("threads.get_by_id", thread_id=thread_id)
        assert response.status_code == 200, response.text
        return Thread.model_validate_json(response.content)


def texts(events: list[Any]) -> list[str]:
    """The texts of the completed assistant messages."""
    done = [event.item for event in events if event.type == "thread.item.done" and event.item.type == "assistant_message"]
    return ["".join(part.text for part in item.content) for item in done]


def deltas(events: list[Any]) -> list[str]:
    """The text deltas."""
    return [event.update.delta for event in events if event.type == "thread.item.updated" and hasattr(event.update, "delta")]


def errors(events: list[Any]) -> list[tuple[str, str | None, bool]]:
    """The errors of a stream: code, message and ``allow_retry``."""
    return [(event.code, event.message, event.allow_retry) for event in events if event.type == "error"]


def on_screen(events: list[Any]) -> dict[str, str]:
    """The items that a page shows after these events, as a dictionary from id to type."""
    shown: dict[str, str] = {}
    for event in events:
        if event.type in ("thread.item.added", "thread.item.done", "thread.item.replaced"):
            shown[event.item.id] = event.item.type
        elif event.type == "thread.item.removed":
            shown.pop(event.item_id, None)
    return shown
