"""Halves of surrogate pairs in what servers show and store."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from chatkit.backends.selfhosted.chat.surrogates import joined, to_json
from tests.support.applications import Start
from tests.support.chat import errors, texts
from tests.support.leaks import Recorder


class Note(BaseModel, extra="allow"):
    text: str = ""
    data: Any = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("\ud83d\ude00", "\U0001f600"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00b", "\ufffd\U0001f600b"),
        (["a", ["\ud83d"]], ["a", ["\ufffd"]]),
        ({"\ud83d": 1, "a": {"b": "\ude00"}}, {"\ufffd": 1, "a": {"b": "\ufffd"}}),
        (Note(text="\ud83d", data=[Note(text="\ude00")]), Note(text="\ufffd", data=[Note(text="\ufffd")])),
        (Note.model_validate({"label": "\ud83d"}), Note.model_validate({"label": "\ufffd"})),
    ],
    ids=ascii,
)
def test_joined(given: Any, expected: Any) -> None:
    assert joined(given) == expected


@pytest.mark.parametrize(
    "given",
    ["", "ü\U0001f600", ["a", {"b": [1, None]}], Note.model_validate({"text": "ü", "data": {"a": Note()}, "label": "b"})],
)
def test_nothing_to_join(given: Any) -> None:
    assert joined(given) is given


def test_only_what_changes_counts_as_set() -> None:
    """The Agents SDK sends a model what is set."""
    assert joined(Note(text="\ud83d")).model_dump(exclude_unset=True) == {"text": "\ufffd"}


def test_to_json() -> None:
    note = Note(text="\ud83d\ude00", data={"\ud83d": ("\ud83d",)})
    assert to_json(Note(text="a")) == '{"text":"a","data":null}'
    assert to_json(note) == '{"text":"\U0001f600","data":{"\ufffd":["\ufffd"]}}'
    assert note.text == "\ud83d\ude00", "the server still has its own"
    with pytest.raises(PydanticSerializationError):
        to_json(Note(data=object()))


def test_server_of_an_operator(start: Start, recorder: Recorder) -> None:
    caller, before = start("tests.support.servers_under_test:Halving"), len(recorder.lines)
    thread_id, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Good \U0001f600 day \ufffd"])
    message, widget, _ = caller.items(thread_id).data
    assert message.content[0].text == "Good \U0001f600 day \ufffd"
    assert widget.widget.model_dump()["children"][0]["value"] == "\ufffd"
    assert caller.thread(thread_id).title == "Title \ufffd"
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm").json() == {"text": "\ufffd"}
    assert not [line for line in recorder.lines[before:] if "could not be saved" in line], "the unfinished message"
