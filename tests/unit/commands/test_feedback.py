"""``feedback export``: what is rated, with its question, for a program and for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json

import pytest
from sqlalchemy import create_engine, text

from chatkit.commands.feedback import _cell
from chatkit.web.asgi import AsgiFlask
from tests.support.commands import run
from tests.support.stored_data import answer, fill, question

FORMULA = '=HYPERLINK("https://evil.test";"a, b")\nsecond line'


def rate(database: str) -> None:
    hidden = {"type": "hidden_context_item", "content": {"type": "user_message", "say": "not this"}}
    fill(database, "user:a", "thr_1", question("First?"), answer("Wrong"), question(FORMULA), hidden, answer("Right ✓"))
    fill(database, "user:b", "thr_2", answer("Unasked"), answer("Unrated"))
    verdicts = {("thr_1", "msg_1"): "negative", ("thr_1", "msg_4"): "positive", ("thr_2", "msg_0"): "positive"}
    with create_engine(database).begin() as connection:
        for (thread, item), verdict in verdicts.items():
            statement = text("UPDATE chat_items SET feedback = :verdict WHERE thread_id = :thread AND id = :item")
            connection.execute(statement, {"verdict": verdict, "thread": thread, "item": item})


def rated(*rows: tuple[str, str, str, str, str, str]) -> list[dict[str, str]]:
    names = ("verdict", "question", "answer", "user", "thread_id", "item_id")
    return [{"created_at": "2026-11-01T00:00:01Z", **dict(zip(names, row, strict=True))} for row in rows]


def test_feedback_as_json_lines(app: AsgiFlask, database: str) -> None:
    rate(database)
    result = run(app, "feedback", "export", "--format", "jsonl")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == rated(
        ("negative", "First?", "Wrong", "user:a", "thr_1", "msg_1"),
        ("positive", FORMULA, "Right ✓", "user:a", "thr_1", "msg_4"),
        ("positive", "", "Unasked", "user:b", "thr_2", "msg_0"),
    )


def test_feedback_as_csv_runs_nothing_in_a_spreadsheet(app: AsgiFlask, database: str) -> None:
    rate(database)
    result = run(app, "feedback", "export")
    assert list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline=""))) == rated(
        ("negative", "First?", "Wrong", "user:a", "thr_1", "msg_1"),
        ("positive", f"'{FORMULA}", "Right ✓", "user:a", "thr_1", "msg_4"),
        ("positive", "", "Unasked", "user:b", "thr_2", "msg_0"),
    )
    assert "negative,First?,Wrong" in result.stdout


@pytest.mark.parametrize(
    "text_",
    ["=1", "+1", "-1", "@a", "\t=1", "\n=1", "\n1", "\uff1d1", "\uff0b1", " =1", "\u200b=1", "\ufeff\u2060@a", "\u2028-1"],
)
def test_cell_that_is_a_formula(text_: str) -> None:
    assert _cell(text_) == f"'{text_}"


def test_cell_has_no_control_characters() -> None:
    assert _cell("a\x1b[2J\x9b31m\0\x7f\r\n\tb") == "a\\x1b[2J\\x9b31m\\x00\\x7f\\r\n\tb"
    for plain in ("", "a", "a=1", "1-2", "(=1", "é", "\u200b", "\U0001f600 = 1"):
        assert _cell(plain) == plain


def test_without_feedback(app: AsgiFlask, database: str) -> None:
    assert run(app, "feedback", "export").stdout.splitlines() == ["created_at,verdict,question,answer,user,thread_id,item_id"]
    assert run(app, "feedback", "export", "--format", "jsonl").stdout == ""
