"""The stored form of a paused run's state."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chatkit.backends.selfhosted.chat.run_states import pack, unpack

LONG = "x" * 1000


@pytest.mark.parametrize(
    "value",
    [
        LONG,
        "#",
        "#0",
        "#1 " + LONG,
        {"#0": "#0", "parts": ["#1"]},
        [LONG, [LONG], {"a": [LONG]}],
        [{"a": LONG, "b": [1, 2.5, None, True]}] * 3,
        ["\0", "\u2028", "ü" * 200, "\U0001f600", "\ud800", "\\ud800", '"' * 200],
        [],
        "",
    ],
)
def test_a_state_is_as_before(value: Any) -> None:
    state = {"first": value, "second": [value, LONG]}
    stored = pack(state).decode()
    assert unpack(stored) == state
    assert "\0" not in stored
    assert stored.count(LONG) <= 2, "the value, and where it is a part of another text"


def test_files_are_left_out_if_they_do_not_fit() -> None:
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    elsewhere = {"type": "input_file", "file_url": "https://example.com/a.pdf"}
    assert unpack(pack({"items": [file, elsewhere]}).decode()) == {"items": [file, elsewhere]}
    note = {"type": "input_text", "text": "(This file is not shown to you.)"}
    assert unpack(pack({"items": [file, elsewhere]}, keep_files=False).decode()) == {"items": [note, elsewhere]}


def test_equal_parts_are_stored_once() -> None:
    item = {"name": LONG, "rows": [{"city": f"number {number}"} for number in range(100)]}
    once = len(pack({"items": [item]}))
    assert len(pack({"items": [item] * 5, "again": [json.loads(json.dumps(item))]})) < once + 200
