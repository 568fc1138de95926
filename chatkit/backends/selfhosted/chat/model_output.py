"""Repairs the output of models before the Agents SDK processes it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from agents import ModelResponse
from agents.items import TResponseStreamEvent
from agents.run_internal import run_loop
from agents.run_internal.model_retry import get_response_with_retry, stream_response_with_retry

from chatkit.backends.selfhosted.chat.surrogates import joined

_ESCAPED_HALF = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def join_halves() -> None:
    """Let all runs get a model's output without halves of characters, see ``surrogates``.

    The Agents SDK fails on them in the arguments of a tool, and OpenAI's client in the input of the next call.
    """
    run_loop.get_response_with_retry = _joined_response  # type: ignore[attr-defined]
    run_loop.stream_response_with_retry = _joined_stream  # type: ignore[attr-defined]


async def _joined_response(**arguments: Any) -> ModelResponse:
    response = await get_response_with_retry(**arguments)
    response.output = [_joined_item(item) for item in response.output]
    return response


async def _joined_stream(**arguments: Any) -> AsyncGenerator[TResponseStreamEvent]:
    held: dict[Any, str] = {}
    async with aclosing(stream_response_with_retry(**arguments)) as events:
        async for event in events:
            yield _joined_event(event, held)


def _joined_event(event: Any, held: dict[Any, str]) -> Any:
    """Return ``event`` without halves. One at the end of a delta is ``held`` for the next delta of its part."""
    if isinstance(delta := getattr(event, "delta", None), str):
        if held or joined(delta) is not delta:
            part = tuple(getattr(event, name, None) for name in ("type", "item_id", "content_index", "summary_index"))
            text = held.pop(part, "") + delta
            if "\ud800" <= text[-1:] <= "\udbff":
                held[part], text = text[-1], text[:-1]
            event.delta = joined(text)
    elif response := getattr(event, "response", None):
        if output := getattr(response, "output", None):  # some services leave it out
            response.output = [_joined_item(item) for item in output]  # the rest of a response is not of the model
    elif item := getattr(event, "item", None):
        event.item = _joined_item(item)
    else:
        event = joined(event)
    return event


def _joined_item(item: Any) -> Any:
    """Return an item of the output without halves, also without those that are escaped in the JSON of a call's arguments."""
    item = joined(item)
    arguments = getattr(item, "arguments", None)
    if isinstance(arguments, str) and _ESCAPED_HALF.search(arguments):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            return item
        if (whole := joined(parsed)) is not parsed:
            item.arguments = json.dumps(whole)
    return item
