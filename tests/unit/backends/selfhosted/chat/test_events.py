"""The conversion of Responses API events to ChatKit's: what the page receives and what is stored.

The table covers every event that the SDK's bridge converts in the locked versions of ``openai`` and ``openai-agents``.
"""

from __future__ import annotations

import base64
import inspect
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from chatkit.agents import stream_agent_response

from tests.support.applications import Start
from tests.support.chat import errors, on_screen, texts
from tests.support.chat_completions import completing, requests_tool, writes
from tests.support.fake_openai import FakeOpenAI
from tests.support.leaks import Recorder
from tests.support.responses_api import FAILED, INCOMPLETE, Events, calls, cites, draws, refuses, says, streaming, thinks, works

SHAPES = ["simple", "for_user", "run_workflow", "tests.support.servers_under_test:Plain"]
URL = {
    "type": "url_citation",
    "start_index": 0,
    "end_index": 5,
    "url": "https://example.com/a?utm_source=openai",
    "title": "An example",
}
FILE = {"type": "file_citation", "file_id": "file_1", "filename": "report.pdf", "index": 5}
CONTAINER = {
    "type": "container_file_citation",
    "container_id": "cntr_1",
    "file_id": "cfile_1",
    "filename": "plot.png",
    "start_index": 0,
    "end_index": 5,
}
PATH = {"type": "file_path", "file_id": "file_2", "index": 5}
SHOWN_URL = {"type": "url", "title": "An example", "url": URL["url"]}
SHOWN_FILE = {"type": "file", "title": "report.pdf", "filename": "report.pdf"}
SHOWN_PLOT = {"type": "file", "title": "plot.png", "filename": "plot.png"}
PNG, HALF = "iVBORw0KGgo=", "iVBORw0K"


def shown(image: str) -> str:
    return f"data:image/png;base64,{image}"


def seen(url: str) -> str:
    """The image that a browser sees at ``url``, as a data URL."""
    if url.startswith("data:"):
        return url
    response = requests.get(url, timeout=30)
    assert response.status_code == 200, response.text
    return f"data:{response.headers['Content-Type']};base64,{base64.b64encode(response.content).decode()}"


@dataclass
class Row:
    """The model's output, the events the page receives, and the items stored after the user's message."""

    output: list[Events]
    events: list[Any]
    stored: list[Any]
    converts: set[str] = field(default_factory=set)
    """The Responses API events that this row covers."""


SEARCH = works("web_search_call", "in_progress", "searching", "completed", action={"type": "search", "query": "a"})
FILES = works("file_search_call", "in_progress", "searching", "completed", queries=["a"], results=None)
CODE = works("code_interpreter_call", "in_progress", "interpreting", "completed", code="1", container_id="cntr_1", outputs=None)
MESSAGE: list[Any] = ["message added", ("part", ""), ("delta", "Hello"), ("part done", "Hello"), ("message done", "Hello", [])]
THOUGHT: list[Any] = [
    "workflow added",
    ("thought", 0, "First"),
    ("thought", 0, "First I"),
    ("thought", 0, "First I"),
    ("thought", 1, "Then"),
    ("workflow done", ["First I", "Then"]),
]

TABLE = {
    "text": Row(
        [says("Hello")],
        MESSAGE,
        [("message", "Hello", [])],
        {
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.output_item.done",
        },
    ),
    "url citation after a web search": Row(
        [[*SEARCH, *cites("Hello", URL)]],
        [*MESSAGE[:3], ("annotation", 0, SHOWN_URL, 5), MESSAGE[3], ("message done", "Hello", [SHOWN_URL])],
        [("message", "Hello", [SHOWN_URL])],
        {"response.output_text.annotation.added"},
    ),
    "file citation after a file search": Row(
        [[*FILES, *cites("Hello", FILE)]],
        [*MESSAGE[:3], ("annotation", 0, SHOWN_FILE, 5), MESSAGE[3], ("message done", "Hello", [SHOWN_FILE])],
        [("message", "Hello", [SHOWN_FILE])],
    ),
    "container file citation after code": Row(
        [[*CODE, *cites("Hello", CONTAINER)]],
        [*MESSAGE[:3], ("annotation", 0, SHOWN_PLOT, 5), MESSAGE[3], ("message done", "Hello", [SHOWN_PLOT])],
        [("message", "Hello", [SHOWN_PLOT])],
    ),
    "several citations, one of a kind that ChatKit can't show": Row(
        [cites("Hello", PATH, URL, FILE)],
        [
            *MESSAGE[:3],
            ("annotation", 0, SHOWN_URL, 5),
            ("annotation", 1, SHOWN_FILE, 5),
            MESSAGE[3],
            ("message done", "Hello", [SHOWN_URL, SHOWN_FILE]),
        ],
        [("message", "Hello", [SHOWN_URL, SHOWN_FILE])],
    ),
    "reasoning": Row(
        [[*thinks("First I", "Then"), *says("Hello")]],
        [*THOUGHT, *MESSAGE],
        [("workflow", ["First I", "Then"]), ("message", "Hello", [])],
        {"response.reasoning_summary_text.delta", "response.reasoning_summary_text.done"},
    ),
    "reasoning without a summary": Row(
        [[*thinks(), *says("Hello")]],
        ["workflow added", ("workflow done", []), *MESSAGE],
        [("workflow", []), ("message", "Hello", [])],
    ),
    "reasoning text": Row(
        [
            [
                {
                    "type": "response.content_part.added",
                    "item_id": "rs_1",
                    "output_index": 0,
                    "content_index": 0,
                    "part": {"type": "reasoning_text", "text": ""},
                },
                {
                    "type": "response.reasoning_text.delta",
                    "item_id": "rs_1",
                    "output_index": 0,
                    "content_index": 0,
                    "delta": "a",
                },
                *says("Hello"),
            ]
        ],
        MESSAGE,
        [("message", "Hello", [])],
    ),
    "image": Row(
        [[*draws(PNG, HALF), *says("Hello")]],
        ["image added", ("image", shown(HALF)), ("image done", shown(PNG)), *MESSAGE],
        [("image", shown(PNG)), ("message", "Hello", [])],
        {"response.image_generation_call.partial_image"},
    ),
}


def summary(event: Any) -> Any:
    """``event`` in the table's notation; ``None`` if it is not part of the reply."""
    kind = event.type.removeprefix("thread.item.")
    if kind in ("added", "done", "removed"):
        stored = item(event.item) if kind != "removed" else ("removed",)
        if stored is None or kind == "removed":
            return stored
        return f"{stored[0]} added" if kind == "added" else (f"{stored[0]} done", *stored[1:])
    if kind != "updated":
        return (event.code, event.message) if kind == "error" else None
    update = event.update
    match update.type:
        case "assistant_message.content_part.added":
            return ("part", update.content.text)
        case "assistant_message.content_part.text_delta":
            return ("delta", update.delta)
        case "assistant_message.content_part.annotation_added":
            source = update.annotation.source.model_dump(exclude_none=True)
            return ("annotation", update.annotation_index, source, update.annotation.index)
        case "assistant_message.content_part.done":
            return ("part done", update.content.text)
        case "workflow.task.added" | "workflow.task.updated":
            return ("thought", update.task_index, update.task.content)
        case "generated_image.updated":
            return ("image", seen(update.image.url))
    raise AssertionError(update)


def item(kept: Any) -> Any:
    """An item in the table's notation; ``None`` for the user's message."""
    match kept.type:
        case "assistant_message":
            sources = [note.source.model_dump(exclude_none=True) for part in kept.content for note in part.annotations]
            return ("message", "".join(part.text for part in kept.content), sources)
        case "workflow":
            return ("workflow", [task.content for task in kept.workflow.tasks])
        case "generated_image":
            return ("image", kept.image and seen(kept.image.url))
        case "user_message":
            return None
    raise AssertionError(kept)


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("name", TABLE)
def test_events(start: Start, fake_openai: FakeOpenAI, name: str, agent: str) -> None:
    row = TABLE[name]
    caller = start(agent)
    fake_openai.behaviour = streaming(*row.output)
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    assert [words for event in events if (words := summary(event)) is not None] == row.events
    kept = caller.items(thread_id, order="asc").data
    assert [words for one in kept if (words := item(one)) is not None] == row.stored


def test_table_covers_every_event_that_the_bridge_converts() -> None:
    converted = set(re.findall(r'event\.type == "(response\.[a-z_.]+)"', inspect.getsource(stream_agent_response)))
    assert converted == set().union(*(row.converts for row in TABLE.values()))


@pytest.mark.parametrize("agent", SHAPES)
def test_refusal_is_shown_as_a_message(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    """The Agents SDK raises an error for it, which arrives before some of the message's events."""
    caller = start(agent)
    fake_openai.behaviour = streaming(refuses("I can't help with that"))
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    assert texts(events) == ["I can't help with that"]
    assert item(caller.items(thread_id).data[0]) == ("message", "I can't help with that", [])


ERROR = {"type": "error", "code": "server_error", "message": "inner", "param": None}


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("end", [FAILED, ERROR], ids=["failed", "error"])
def test_response_that_fails_midway(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str, end: dict[str, Any]
) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming([*says("half a")[:4], end])
    before = len(recorder.lines)
    _, events = caller.create("Go")
    assert errors(events) == [("stream.error", None, True)]
    assert "inner" not in repr(events)
    assert "inner" not in "".join(recorder.lines[before:])


@pytest.mark.parametrize("agent", SHAPES)
def test_incomplete_response_keeps_its_text(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming([*says("as far as it goes"), INCOMPLETE])
    thread_id, events = caller.create("Go")
    assert errors(events) == [("stream.error", None, True)]
    assert item(caller.items(thread_id, order="asc").data[1]) == ("message", "as far as it goes", [])


@pytest.mark.parametrize(
    "agent", ["with_tool", "with_tool_for_user", "tool_workflow", "tests.support.servers_under_test:WithTool"]
)
def test_reasoning_tool_call_and_citation(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming([*thinks("Ask"), *calls("weather", city="Paris")], cites("Sunny", URL))
    thread_id, events = caller.create("Weather?")
    assert errors(events) == []
    kept = caller.items(thread_id, order="asc").data[1:]
    assert [item(one) for one in kept] == [("workflow", ["Ask"]), ("message", "Sunny", [SHOWN_URL])]


@pytest.mark.parametrize("tool", ["weather", "ask_page"])
def test_call_without_an_id(start: Start, fake_openai: FakeOpenAI, tool: str) -> None:
    """The API's description does not require one, and the run must not make one up for the model."""
    call = calls(tool, **({"city": "Paris"} if tool == "weather" else {"question": "Colour?"}))
    for event in call:
        if isinstance(event, dict) and "item" in event:
            del event["item"]["id"]
    caller = start("with_tool" if tool == "weather" else "with_page")
    fake_openai.behaviour = streaming(call, says("Sun"))
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    if tool == "weather":
        assert texts(events) == ["Sun"]
        (again,) = [one for one in fake_openai.received[1].body["input"] if one.get("type") == "function_call"]
        assert "id" not in again
    else:
        assert caller.items(thread_id).data[0].type == "client_tool_call"


def test_client_tool_call_does_not_overwrite_the_preceding_message(start: Start, fake_openai: FakeOpenAI) -> None:
    """Outside the Responses API, messages and calls share one id: ``__fake_id__``."""
    caller = start("chat_completions")
    fake_openai.behaviour = completing([*writes("Let me see"), *requests_tool("ask_page", question="Colour?")])
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "assistant_message", "client_tool_call"]


RANGE = {"start_index": 0, "end_index": 3}
UNUSUAL_CITATIONS: dict[str, dict[str, Any]] = {
    "unknown kind": {"type": "future_citation", **RANGE},
    "no title": {"type": "url_citation", "url": "https://example.com", **RANGE},
    "title is null": {"type": "url_citation", "url": "https://example.com", "title": None, **RANGE},
    "no filename": {"type": "file_citation", "file_id": "file_1", "index": 3},
    "filename is null": {"type": "file_citation", "file_id": "file_1", "filename": None, "index": 3},
    "no index": {"type": "url_citation", "url": "https://example.com", "title": "An example"},
}


@pytest.mark.parametrize("agent", ["simple", "run_workflow"])
@pytest.mark.parametrize("annotation", UNUSUAL_CITATIONS)
def test_citation_that_cannot_be_shown_is_skipped(start: Start, fake_openai: FakeOpenAI, annotation: str, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(cites("Hello", UNUSUAL_CITATIONS[annotation]))
    _, events = caller.create("Go")
    assert (errors(events), texts(events)) == ([], ["Hello"])


def test_refusal_keeps_the_preceding_text(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("chat_completions")
    fake_openai.behaviour = completing([*writes("Some of it. "), {"refusal": "The rest I can't"}])
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    kept = caller.items(thread_id).data[0]
    assert "".join(part.text for part in kept.content) == "Some of it. The rest I can't"


def test_failed_image_is_removed_from_the_page(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    failed: list[Any] = draws("AAAA", "AAA")
    failed[-1]["item"] = {**failed[-1]["item"], "status": "failed", "result": None}
    fake_openai.behaviour = streaming([*failed, *says("It failed")])
    thread_id, events = caller.create("Draw")
    assert set(on_screen(events)) == {item.id for item in caller.items(thread_id).data}


@pytest.mark.parametrize(
    "agent", ["drawing", "drawing_for_user", "drawing_workflow", "tests.support.servers_under_test:Drawing", "having_it_drawn"]
)
def test_progress_of_an_image(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    """The agent's image tool says how many partial images there will be."""
    caller = start(agent)
    handoff = [calls("transfer_to_drawing")] if agent == "having_it_drawn" else []
    fake_openai.behaviour = streaming(*handoff, [*draws(PNG, HALF, HALF), *says("Here")])
    _, events = caller.create("Draw")
    updates = [event.update for event in events if event.type == "thread.item.updated"]
    assert [update.progress for update in updates if update.type == "generated_image.updated"] == [0, 0.5]


@pytest.mark.parametrize("agent", ["complete", "run_workflow"])
def test_model_that_streams_only_complete_responses(start: Start, agent: str) -> None:
    caller = start(f"tests.support.agents_without_streaming:{agent}")
    thread_id, events = caller.create("Weather?")
    assert (errors(events), texts(events)) == ([], ["I look it up.", "It is sunny.Enjoy it."])
    assert len({item.id for item in caller.items(thread_id).data}) == 3
