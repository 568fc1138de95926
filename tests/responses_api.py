"""A stand-in for OpenAI's Responses API: what a model would say, as the events in which the API streams it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from tests.upstream import Behaviour, Handler


def says(text: str, *, pause: float = 0.0) -> list[dict[str, Any] | float]:
    """A message that comes word by word."""
    item = {"id": "msg_of_the_model", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    whole = {**part, "text": text}
    words = [word if not number else f" {word}" for number, word in enumerate(text.split(" "))]
    done = {**item, "status": "completed", "content": [whole]}
    events: list[dict[str, Any] | float] = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
    ]
    for word in words:
        events += [{"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}, pause]
    return [
        *events,
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
    ]


def calls(name: str, **arguments: Any) -> list[dict[str, Any] | float]:
    """A call of a tool."""
    item = {"id": "fc_of_the_model", "type": "function_call", "call_id": "call_1", "name": name, "status": "completed"}
    whole = {**item, "arguments": json.dumps(arguments)}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": {**whole, "arguments": ""}},
        {
            "type": "response.function_call_arguments.done",
            "item_id": item["id"],
            "name": name,
            "output_index": 0,
            "arguments": whole["arguments"],
        },
        {"type": "response.output_item.done", "output_index": 0, "item": whole},
    ]


def streaming(*turns: list[dict[str, Any] | float]) -> Behaviour:
    """Answers one call of the API after another; the last is repeated. A number is a pause in seconds."""
    left = list(turns)

    def behave(handler: Handler) -> None:
        events = left.pop(0) if len(left) > 1 else left[0]
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for number, event in enumerate(_whole(events)):
            if isinstance(event, float):
                time.sleep(event)
                continue
            data = json.dumps({"sequence_number": number, **event})
            handler.wfile.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
            handler.wfile.flush()

    return behave


def _whole(events: list[dict[str, Any] | float]) -> Iterator[dict[str, Any] | float]:
    output = [event["item"] for event in events if isinstance(event, dict) and event["type"] == "response.output_item.done"]
    response: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": "gpt-test",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": "in_progress",
    }
    usage = {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 2,
    }
    yield {"type": "response.created", "response": response}
    yield from events
    yield {"type": "response.completed", "response": {**response, "status": "completed", "output": output, "usage": usage}}


def asked(body: dict[str, Any]) -> list[tuple[str, str]]:
    """What a model was given: role and text of each message, and type of each other item."""
    given = []
    for item in body["input"]:
        content = item.get("content", "")
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        given.append((item.get("role") or item["type"], text))
    return given
