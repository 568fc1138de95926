"""A fake of the Chat Completions API, which models outside OpenAI have."""

from __future__ import annotations

import json
from typing import Any

from tests.support.fake_server import Behaviour, Handler

Deltas = list[dict[str, Any]]
"""A model's output in one response."""


def writes(text: str) -> Deltas:
    return [{"role": "assistant", "content": text}]


def thinks(*parts: str) -> Deltas:
    """Thoughts, as providers of reasoning models send them."""
    return [{"role": "assistant", "reasoning_content": part} for part in parts]


def requests_tool(name: str, **arguments: Any) -> Deltas:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [{"tool_calls": [{"index": 0, "id": f"call_{name}", "type": "function", "function": function}]}]


def completing(*turns: Deltas) -> Behaviour:
    """Stream the next of ``turns`` in response to each call, and repeat the last. Usage is only told if it is requested."""
    left = list(turns)

    def behave(handler: Handler) -> None:
        deltas = left.pop(0) if len(left) > 1 else left[0]
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        whole = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test"}
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]} for delta in [*deltas, {}]
        ]
        if (handler.received.body.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
        for chunk in chunks:
            handler.wfile.write(f"data: {json.dumps({**whole, **chunk})}\n\n".encode())
        handler.wfile.write(b"data: [DONE]\n\n")

    return behave
