"""A fake of OpenAI's Responses API: the events that stream a model's output."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from tests.support.fake_server import Behaviour, Handler

Events = list[dict[str, Any] | float]
"""A model's output in one response. A number is a pause in seconds."""

INCOMPLETE: dict[str, Any] = {
    "type": "response.incomplete",
    "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
}
FAILED: dict[str, Any] = {
    "type": "response.failed",
    "response": {"status": "failed", "error": {"code": "server_error", "message": "inner"}},
}


def says(text: str, *, pause: float = 0.0) -> Events:
    """A message that is streamed word by word, with ``pause`` seconds after each word."""
    item = {"id": "msg_of_the_model", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    whole = {**part, "text": text}
    words = [word if not number else f" {word}" for number, word in enumerate(text.split(" "))]
    done = {**item, "status": "completed", "content": [whole]}
    events: Events = [
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


def calls(name: str, call_id: str = "call_1", /, **arguments: Any) -> Events:
    """A tool call. The calls of a run need different ids."""
    item_id = f"fc_{call_id}_of_the_model"
    item = {"id": item_id, "type": "function_call", "call_id": call_id, "name": name, "status": "completed"}
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


def thinks(*thoughts: str) -> Events:
    """Reasoning with a summary in parts."""
    item = {"id": "rs_of_the_model", "type": "reasoning", "summary": [], "encrypted_content": "gAAAAB"}
    events: Events = [{"type": "response.output_item.added", "output_index": 0, "item": item}]
    summary = [{"type": "summary_text", "text": text} for text in thoughts]
    for index, part in enumerate(summary):
        place = {"item_id": item["id"], "output_index": 0, "summary_index": index}
        events.append({"type": "response.reasoning_summary_part.added", **place, "part": {**part, "text": ""}})
        words = part["text"].split(" ")
        for word in [words[0], *(f" {word}" for word in words[1:])]:
            events.append({"type": "response.reasoning_summary_text.delta", **place, "delta": word, "obfuscation": "x7"})
        events.append({"type": "response.reasoning_summary_text.done", **place, "text": part["text"]})
        events.append({"type": "response.reasoning_summary_part.done", **place, "part": part})
    return [*events, {"type": "response.output_item.done", "output_index": 0, "item": {**item, "summary": summary}}]


def cites(text: str, *annotations: dict[str, Any]) -> Events:
    """A message with citations, which the API sends between the text and its end."""
    events = says(text)
    place = {"item_id": "msg_of_the_model", "output_index": 0, "content_index": 0}
    ends = next(i for i, event in enumerate(events) if isinstance(event, dict) and event["type"] == "response.output_text.done")
    for event in events[ends + 1 :]:
        if isinstance(event, dict):
            for part in [event.get("part"), *event.get("item", {}).get("content", [])]:
                if part:
                    part["annotations"] = list(annotations)
    added = [
        {"type": "response.output_text.annotation.added", **place, "annotation_index": index, "annotation": annotation}
        for index, annotation in enumerate(annotations)
    ]
    return [*events[:ends], *added, *events[ends:]]


def refuses(text: str) -> Events:
    item = {"id": "msg_of_the_model", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "refusal", "refusal": text}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": {**part, "refusal": ""}},
        {"type": "response.refusal.delta", **place, "delta": text},
        {"type": "response.refusal.done", **place, "refusal": text},
        {"type": "response.content_part.done", **place, "part": part},
        {
            "type": "response.output_item.done",
            "output_index": 0,
            "item": {**item, "status": "completed", "content": [part]},
        },
    ]


def draws(image: str, *partial: str) -> Events:
    """A generated image, in base64, after partial images."""
    item = {"id": "ig_of_the_model", "type": "image_generation_call", "status": "in_progress", "result": None}
    place = {"item_id": item["id"], "output_index": 0}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.image_generation_call.in_progress", **place},
        {"type": "response.image_generation_call.generating", **place},
        *(
            {
                "type": "response.image_generation_call.partial_image",
                **place,
                "partial_image_index": index,
                "partial_image_b64": data,
            }
            for index, data in enumerate(partial)
        ),
        {"type": "response.image_generation_call.completed", **place},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "status": "completed", "result": image}},
    ]


def works(kind: str, *phases: str, **fields: Any) -> Events:
    """A call of one of OpenAI's own tools, with an event for each of ``phases``."""
    item = {"id": "call_of_the_model", "type": kind, "status": "completed", **fields}
    place = {"item_id": item["id"], "output_index": 0}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress"}},
        *({"type": f"response.{kind}.{phase}", **place} for phase in phases),
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]


def streaming_until_cancelled(ended: list[float]) -> Behaviour:
    """Stream 500 words in ten seconds. When the client disconnects, add the monotonic time to ``ended``."""
    speak = streaming(says("word " * 500, pause=0.02))

    def behave(handler: Handler) -> None:
        try:
            speak(handler)
        except OSError:
            ended.append(time.monotonic())

    return behave


def streaming(*turns: Events) -> Behaviour:
    """Respond to each call with the next of ``turns``, and repeat the last. A number is a pause in seconds.

    A call that doesn't request a stream gets the whole response at once.
    """
    left = list(turns)

    def behave(handler: Handler) -> None:
        events = left.pop(0) if len(left) > 1 else left[0]
        if not handler.received.body.get("stream"):
            *_, completed = whole(events)
            handler.respond(200, completed["response"])  # type: ignore[index]
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number, event in enumerate(whole(events)):
            if isinstance(event, float):
                time.sleep(event)
                continue
            data = json.dumps({"sequence_number": number, **event})
            chunk = f"event: {event['type']}\ndata: {data}\n\n".encode()
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")

    return behave


def by_model(turns: dict[str, list[Events]]) -> Behaviour:
    """As ``streaming``, with turns for each model."""
    behaviours = {model: streaming(*of_model) for model, of_model in turns.items()}
    return lambda handler: behaviours[handler.received.body["model"]](handler)


def whole(events: Events) -> Iterator[dict[str, Any] | float]:
    """Yield all events of a response whose output is ``events``."""
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
    yield {"type": "response.in_progress", "response": response}
    for event in events:
        if isinstance(event, dict) and event["type"] in ("response.failed", "response.incomplete"):
            yield {**event, "response": {**response, **event["response"], "output": output, "usage": usage}}
            return
        if isinstance(event, dict) and event["type"] == "error":
            yield event
            return
        yield event
    yield {"type": "response.completed", "response": {**response, "status": "completed", "output": output, "usage": usage}}


def asked(body: dict[str, Any]) -> list[tuple[str, str]]:
    """The model's input in ``body``: role and text of each message, and the type of each other item."""
    given = []
    for item in body["input"]:
        content = item.get("content", "")
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        given.append((item.get("role") or item["type"], text))
    return given
