"""Conversion of OpenAI's items to those of its server package: nothing is lost."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from chatkit.types import ThreadItem
from pydantic import TypeAdapter

from chatkit.backends.hosted.conversion import convert_item, convert_thread
from tests.support.threads_api import BEGIN, DESCRIBED, TOOL, URL, Project, answers, asks

_item: TypeAdapter[Any] = TypeAdapter(ThreadItem)
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)


def converted(item: Any) -> Any:
    project = Project()
    thread = project.add("user:a", item)
    return convert_item(project.items[thread][0], thread, BEFORE)


def content_of(item: dict[str, Any]) -> dict[str, Any]:
    """What the item says, in the shape in which it is stored."""
    result = converted(item)
    assert result.losses == ()
    assert result.original is None
    dumped: dict[str, Any] = result.item.model_dump(mode="json", exclude_none=True)
    assert _item.validate_json(result.item.model_dump_json()) == result.item
    assert dumped.pop("id").startswith("cthi_")
    assert dumped.pop("thread_id").startswith("cthr_")
    assert dumped.pop("created_at") == datetime.fromtimestamp(BEGIN + 120, UTC).isoformat().replace("+00:00", "Z")
    return dumped


def text(words: str) -> dict[str, str]:
    return {"type": "input_text", "text": words}


EXPECTED: list[dict[str, Any]] = [
    {"type": "user_message", "content": [text("Hello")], "attachments": [], "inference_options": {}},
    {
        "type": "assistant_message",
        "content": [
            {
                "type": "output_text",
                "text": "See there",
                "annotations": [
                    {
                        "type": "annotation",
                        "source": {"type": "url", "url": "https://example.com/a", "title": "https://example.com/a"},
                    },
                    {"type": "annotation", "source": {"type": "file", "filename": "prices.pdf", "title": "prices.pdf"}},
                ],
            }
        ],
    },
    {
        "type": "user_message",
        "content": [text("What of this?")],
        "attachments": [],
        "quoted_text": "the first",
        "inference_options": {"tool_choice": {"id": "search"}, "model": "gpt-5"},
    },
    {
        "type": "client_tool_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "get_color",
        "arguments": {"of": "sky"},
        "output": {"color": "blue"},
    },
    {
        "type": "client_tool_call",
        "status": "pending",
        "call_id": "call_2",
        "name": "get_color",
        "arguments": {"of": "sky"},
    },
    {"type": "widget", "widget": {"type": "Card", "key": "card", "children": [{"type": "Text", "value": "Hello"}]}},
    {"type": "task", "task": {"type": "custom", "title": "Searching", "content": "3 results", "status_indicator": "none"}},
    {"type": "task", "task": {"type": "thought", "content": "", "status_indicator": "none"}},
    {
        "type": "workflow",
        "workflow": {
            "type": "reasoning",
            "tasks": [{"type": "thought", "title": "First", "content": "Then", "status_indicator": "none"}],
            "expanded": False,
        },
    },
    {
        "type": "workflow",
        "workflow": {
            "type": "custom",
            "tasks": [
                {"type": "thought", "title": "A", "content": "B", "status_indicator": "none"},
                {"type": "custom", "title": "C", "status_indicator": "none"},
            ],
            "expanded": False,
        },
    },
]


@pytest.mark.parametrize(("item", "expected"), list(zip(DESCRIBED, EXPECTED, strict=True)))
def test_each_kind_of_openais_description(item: dict[str, Any], expected: dict[str, Any]) -> None:
    assert content_of(item) == expected


FILE = {"type": "file", "id": "cfile_1", "name": "a.pdf", "mime_type": "application/pdf", "preview_url": None}
IMAGE = {"type": "image", "id": "cfile_2", "name": "b.png", "mime_type": "image/png", "preview_url": "https://example.com/b"}

PART = ["a part of a message"]
PARTLY: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "attachments": (asks("See", attachments=[FILE, IMAGE]), ["attachments"], "See"),
    "only attachments": (asks("", content=[], attachments=[FILE, IMAGE]), ["attachments"], "(a.pdf, b.png)"),
    "another part": (asks("", content=[text("a"), {"type": "input_audio", "data": "x"}]), ["a part of a message"], "a"),
    "another part with text": (asks("", content=[{"type": "input_tag", "text": "Ada"}]), ["a part of a message"], "Ada"),
    "another annotation": (answers("a", {"type": "map", "source": {"type": "map"}}), ["an annotation"], "a"),
    "a broken annotation": (answers("a", {"type": "url", "source": None}), ["an annotation"], "a"),
    "a refusal": (
        {"type": "chatkit.assistant_message", "content": [{"type": "refusal", "text": "No"}]},
        ["a part of a message"],
        "No",
    ),
    "a text of another type": (asks("", content=[text("a"), {"type": "input_text", "text": {"value": "b"}}]), PART, "a"),
    "a quotation without text": (asks("", content=[{"type": "quoted_text"}, text("a")]), PART, "a"),
    "no text": (asks("", content=[text("a"), {"type": "input_text", "value": "b"}]), PART, "a"),
    "a text with more": (asks("", content=[{**text("a"), "language": "en"}]), PART, "a"),
    "an answer of another type": (
        {"type": "chatkit.assistant_message", "content": [{"type": "output_text", "text": ["a"], "annotations": []}]},
        PART,
        "",
    ),
    "an answer with more": (
        {"type": "chatkit.assistant_message", "content": [{"type": "output_text", "text": "a", "logprobs": [1]}]},
        PART,
        "a",
    ),
    "an annotation with more": (answers("a", {**URL, "index": 5}), ["an annotation"], "a"),
    "a source with more": (
        answers("a", {"type": "file", "source": {"type": "file", "filename": "a.pdf", "page": 2}}),
        ["an annotation"],
        "a",
    ),
    "an unknown member": ({**answers("a"), "rating": 5}, ["an unknown member"], "a"),
    "unknown options": (asks("a", inference_options={"model": "gpt-5", "effort": "low"}), ["inference options"], "a"),
    "an unknown choice": (asks("a", inference_options={"tool_choice": {"id": "a", "mode": "b"}}), ["inference options"], "a"),
    "no time": ({**asks("Hello"), "created_at": None}, ["its time"], "Hello"),
}


@pytest.mark.parametrize("case", PARTLY)
def test_unknown_content_is_named_and_kept(case: str) -> None:
    item, losses, words = PARTLY[case]
    result = converted(item)
    dumped = result.item.model_dump()
    assert "".join(part["text"] for part in dumped["content"]) == words
    assert list(result.losses) == losses
    assert result.original.items() >= item.items()


@pytest.mark.parametrize("item", DESCRIBED)
def test_unknown_members_that_are_empty_are_not_reported(item: dict[str, Any]) -> None:
    assert converted({**item, "metadata": {}, "references": [], "parent": None}).losses == ()


def test_rest_of_a_widget_and_of_a_task_is_kept() -> None:
    widget = {"type": "Card", "children": [{"type": "Text", "value": "Hello", "shadow": 3}]}
    result = converted({"type": "chatkit.widget", "widget": json.dumps(widget)})
    assert (result.item.type, result.losses) == ("widget", ("a part of a widget",))
    assert "shadow" in result.original["widget"]
    task = {"type": "custom", "heading": "a", "summary": "b", "images": [1]}
    result = converted({"type": "chatkit.task_group", "tasks": [task]})
    assert (result.item.type, result.losses) == ("workflow", ("a part of a task",))
    assert result.original["tasks"] == [task]


def test_tasks_and_outputs_of_another_kind() -> None:
    result = converted({"type": "chatkit.task", "task_type": "web_search", "heading": "a", "summary": "b"})
    assert (result.item.task.title, result.item.task.content, result.losses) == ("a", "b", ("the type of a task",))
    result = converted({"type": "chatkit.client_tool_call", **TOOL, "status": "completed", "output": "blue"})
    assert (result.item.output, result.losses) == ("blue", ("the JSON of a tool's output",))


DEEP = '{"type": "Card", "children": [' * 120 + "]}" * 120
HOPELESS: dict[str, tuple[Any, str]] = {
    "unknown": ({"type": "chatkit.hologram", "light": [1, 2]}, "an item of the unknown type 'chatkit.hologram'"),
    "unknown and long": ({"type": "x" * 900}, f"an item of the unknown type '{'x' * 60}'"),
    "no type": ({"text": "a"}, "an item without a type"),
    "type of another type": ({"type": ["chatkit.widget"]}, "an item without a type"),
    "no content": ({"type": "chatkit.user_message"}, "a malformed chatkit.user_message"),
    "content of another type": ({"type": "chatkit.assistant_message", "content": 5}, "a malformed chatkit.assistant_message"),
    "parts of another type": ({"type": "chatkit.user_message", "content": ["a"]}, "a malformed chatkit.user_message"),
    "no widget": ({"type": "chatkit.widget", "widget": "<b>"}, "a malformed chatkit.widget"),
    "a widget of another kind": ({"type": "chatkit.widget", "widget": '{"type": "Moon"}'}, "a malformed chatkit.widget"),
    "a widget that is nested too deeply": ({"type": "chatkit.widget", "widget": DEEP}, "a malformed chatkit.widget"),
    "an output that is nested too deeply": (
        {"type": "chatkit.client_tool_call", **TOOL, "status": "completed", "output": "[" * 250 + "]" * 250},
        "a malformed chatkit.client_tool_call",
    ),
    "no status": ({"type": "chatkit.client_tool_call", **TOOL}, "a malformed chatkit.client_tool_call"),
    "arguments of another type": (
        {"type": "chatkit.client_tool_call", **TOOL, "status": "completed", "arguments": "[1]"},
        "a malformed chatkit.client_tool_call",
    ),
    "tasks of another type": ({"type": "chatkit.task_group", "tasks": [None]}, "a malformed chatkit.task_group"),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_whole_original_is_kept(case: str) -> None:
    item, loss = HOPELESS[case]
    result = converted(item)
    assert result.item.type == "end_of_turn"
    assert result.losses == (loss,)
    assert result.original.items() >= item.items()
    assert result.item.id == result.original["id"]


@pytest.mark.parametrize("element", [None, 5, "text", [], {}, {"type": "chatkit.widget"}])
def test_element_that_is_no_item_gets_an_id_and_a_time(element: Any) -> None:
    first, again = (convert_item(element, "cthr_1", BEFORE) for _ in range(2))
    assert first == again
    assert first.original == element
    assert first.item.created_at == BEFORE
    assert first.item.id.startswith("imported_")
    assert convert_item(["other"], "cthr_1", BEFORE).item.id != first.item.id


@pytest.mark.parametrize("bad", [None, 5, "", "a" * 129, "a b", "a\0b", "ä", ["a"]])
def test_id_that_can_not_be_stored_is_replaced(bad: Any) -> None:
    result = converted({**asks("Hello"), "id": bad})
    assert result.item.id.startswith("imported_")
    assert result.item.content[0].text == "Hello"
    assert converted({**asks("Hello"), "id": "a" * 128}).item.id == "a" * 128


@pytest.mark.parametrize("bad", [None, "now", True, -1, 2**33, math.nan, math.inf, 1e300, {}])
def test_invalid_time_is_replaced_with_that_of_the_item_before(bad: Any) -> None:
    assert converted({**asks("Hello"), "created_at": bad}).item.created_at == BEFORE


def resource(**changes: Any) -> dict[str, Any]:
    project = Project()
    project.add("user:a", **changes)
    return project.threads[0]


def test_thread_is_converted() -> None:
    thread = convert_thread(resource())
    assert (thread.title, thread.status.type) == ("About user:a", "active")
    assert thread.created_at == datetime.fromtimestamp(BEGIN + 60, UTC)


@pytest.mark.parametrize("type_", ["locked", "closed"])
def test_thread_that_takes_no_messages(type_: str) -> None:
    thread = convert_thread(resource(status={"type": type_, "reason": "done"}, title=None))
    assert thread.title is None
    assert thread.status.model_dump() == {"type": type_, "reason": "done"}


def test_thread_with_mistakes_is_converted_as_far_as_possible() -> None:
    thread = convert_thread({"id": "cthr_1", "title": 5, "status": {"type": "frozen"}, "created_at": "now"})
    assert (thread.title, thread.status.type, thread.created_at.timestamp()) == (None, "active", 0)


@pytest.mark.parametrize("element", [None, [], {}, {"id": None}, {"id": "a" * 65}, {"id": "cthr 1"}, {"id": ""}])
def test_thread_without_an_id_is_none(element: Any) -> None:
    with pytest.raises(ValueError, match="without a valid id"):
        convert_thread(element)
