"""The stored form of a paused run's state: the Agents SDK's ``RunState`` as JSON, with each part once.

The SDK's own form has each output of a tool four times and each generated image five times. It contains what the model was
given and what it answered. The context and credentials are left out, and so are generated images, which the thread has.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agents import Agent, RunState

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.pages import MAX_PAGE
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.types import GeneratedImageItem

MAX_STATE_BYTES = 2 * 1024 * 1024

_MIN_PART = 100  # characters; a smaller part is stored wherever it occurs
_NOT_SHOWN = {
    "input_image": {"type": "input_text", "text": "(This image is not shown to you.)"},
    "image": {"type": "text", "text": "(This image is not shown to you.)"},
    "input_file": {"type": "input_text", "text": "(This file is not shown to you.)"},
}
"""The texts that replace images and files, by their types."""
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedState:
    """A stored state, and what is needed to resume its run."""

    json: str
    """The SDK's JSON."""
    mcp_servers: set[str]
    """The servers whose tools the model has called, by their names in the log."""
    agent: str | None
    """The name of the agent that the run began with; ``None`` if an earlier version stored the state."""
    tool_choice: str | None
    """The agent's tool choice, which may be that of one message."""


def dump(run_state: RunState[Any]) -> str | None:
    """Return the stored form of ``run_state``, or ``None`` if it has more than ``MAX_STATE_BYTES``. May take seconds.

    Images and files that the user attached or a tool returned are replaced by a note for the model if they don't fit.
    """
    state = run_state.to_json(context_serializer=lambda _: {}, strict_context=True)
    _drop_credentials(state)
    agent: Agent[Any] = run_state._starting_agent  # type: ignore[assignment]
    tool_choice = agent.model_settings.tool_choice
    kept = {
        "run_state": state,
        "agent": agent.name,
        "tool_choice": tool_choice if isinstance(tool_choice, str) else None,
    }
    stored = pack(kept)
    if len(stored) > MAX_STATE_BYTES:
        stored = pack(kept, keep_files=False)
    if len(stored) > MAX_STATE_BYTES:
        log.error("A run that needs approval was not kept: its state has %d bytes", len(stored))
        return None
    return stored.decode()


async def load(stored: str, store: SqlStore, thread_id: str, context: ChatContext) -> LoadedState:
    """Return a stored state with its generated images. Those that the thread does not have are left out."""
    kept = await asyncio.to_thread(unpack, stored)
    calls = [part for part in _objects(kept) if _is_image_call(part)]
    if calls:
        page = await store.load_thread_items(thread_id, None, MAX_PAGE, "desc", context)
        items = [item for item in reversed(page.data) if isinstance(item, GeneratedImageItem)]
        urls = {item.image.id: item.image.url for item in items if item.image}
        for call_id in urls.keys() & {call["id"] for call in calls}:
            media_type, _, data = (await store.load_image(urls[call_id], context)).partition(";base64,")
            for call in calls:
                if call["id"] == call_id and media_type.startswith("data:"):
                    call["result"] = data
    state = kept["run_state"]
    bindings = [binding for response in _responses(state) for binding in response.get("mcp_tool_bindings", {}).values()]
    return LoadedState(_encode(state), {server for server, *_ in bindings}, kept.get("agent"), kept.get("tool_choice"))


def pack(kept: dict[str, Any], *, keep_files: bool = True) -> bytes:
    """Return the JSON of ``kept`` with each part once, and without the results of image generation.

    A part of some length is replaced by ``#`` and its number in a list of parts, and so is a text that begins with ``#``. A
    part comes after those that it refers to.
    """
    parts: dict[str, int] = {}

    def packed(value: Any) -> Any:
        if isinstance(value, dict):
            if _is_image_call(value):
                value = {**value, "result": None}
            elif (
                not keep_files
                and (note := _NOT_SHOWN.get(value.get("type", "")))
                and str(value.get("image_url") or value.get("file_data")).startswith("data:")
            ):
                value = note
            value = {key: packed(part) for key, part in value.items()}
        elif isinstance(value, list | tuple):
            value = [packed(part) for part in value]
        elif not isinstance(value, str):
            return value
        encoded = _encode(value)
        if len(encoded) < _MIN_PART and not encoded.startswith('"#'):
            return value
        return f"#{parts.setdefault(encoded, len(parts))}"

    whole = _encode(packed(kept))
    # Half of a surrogate pair can't be encoded. It becomes its escape sequence in JSON.
    return f'{{"parts":[{",".join(parts)}],"kept":{whole}}}'.encode(errors="backslashreplace")


def unpack(stored: str) -> dict[str, Any]:
    """Return what ``pack`` was given. An earlier version stored only the SDK's JSON."""
    whole = json.loads(stored)
    if "parts" not in whole:
        return {"run_state": whole}
    parts: list[Any] = []

    def unpacked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unpacked(part) for key, part in value.items()}
        if isinstance(value, list):
            return [unpacked(part) for part in value]
        return parts[int(value[1:])] if isinstance(value, str) and value.startswith("#") else value

    for part in whole["parts"]:
        parts.append(part if isinstance(part, str) else unpacked(part))  # noqa: PERF401  each refers to those before it
    kept: dict[str, Any] = unpacked(whole["kept"])
    return kept


def _drop_credentials(state: dict[str, Any]) -> None:
    """Drop the configurations of hosted MCP tools, which may have headers. They are read from the agent on resuming."""
    for response in _responses(state):
        for request in response.get("mcp_approval_requests", ()):
            request["mcp_tool"] = {"name": request["mcp_tool"].get("name")}


def _responses(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the model's last response, and those of paused agents that are used as tools."""
    if response := state["last_processed_response"]:
        yield response
        for call in response.get("functions", ()):
            if nested := call.get("agent_run_state"):
                yield from _responses(nested)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in ``value``. One that is there several times may be the same object."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)


def _is_image_call(part: dict[str, Any]) -> bool:
    return part.get("type") == "image_generation_call" and isinstance(part.get("id"), str)
