"""Responses that go on without their reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import requests

from tests.support.chat import Caller, user_input


@dataclass
class Reader:
    response: requests.Response
    lines: Iterator[bytes]
    """Requests closes the connection if this is garbage."""

    def close(self) -> None:
        self.response.close()


def begin(caller: Caller, said: str = "Hello", words: int = 5, on_disconnect: str = "continue") -> tuple[str, str, Reader]:
    """Start a response. Return its thread, its run, and the stream after some words."""
    body = {"type": "threads.create", "params": {"input": user_input(said)}}
    headers = {"ChatKit-On-Disconnect": on_disconnect} if on_disconnect else {}
    response = caller.send(body, stream=True, **headers)
    assert response.status_code == 200, response.text
    received = b""
    lines = response.iter_lines(1)
    for line in lines:
        received += line
        words -= b"text_delta" in line
        if not words:
            break
    thread_id = received.partition(b'"id":"')[2].partition(b'"')[0].decode()
    return thread_id, response.headers["ChatKit-Run"], Reader(response, lines)


def state(caller: Caller, thread_id: str) -> str | None:
    headers = {"Authorization": f"Bearer {caller.secret}"}
    response = caller.http.get(f"{caller.url}/api/chatkit/threads/{thread_id}/run", headers=headers, timeout=30)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return str(data["status"]) if data else None


def stop(caller: Caller, run_id: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {caller.secret}"}
    return caller.http.delete(f"{caller.url}/api/chatkit/runs/{run_id}", headers=headers, timeout=30)


def reply(caller: Caller, thread_id: str) -> str:
    """The text of the thread's first response."""
    items = caller.items(thread_id, order="asc").data
    return items[1].content[0].text if len(items) > 1 else ""
