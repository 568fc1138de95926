"""What callers send can neither forge a log line nor make one endless, whoever writes it."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
from pathlib import Path
from typing import Any

import pytest

from chatkit.web import logs
from tests.support.chat import Caller
from tests.support.service import Service

FORGED = "x\n2026-11-23 12:00:00.000 ERROR   forged\r\x1b[31m\x9b31m\u2028\u202e\ud800\0\x7f"
LONG = "y" * 60_000


def written(message: str, *args: Any, readable: bool, error: BaseException | None = None, **extra: Any) -> str:
    """What the configured handler writes."""
    config = logs.configuration("INFO", readable=readable)
    chosen = config["formatters"][config["handlers"]["stdout"]["formatter"]]
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.config.DictConfigurator(config).configure_formatter(dict(chosen)))
    record = logging.LogRecord(
        "any", logging.INFO, "", 0, message, args, (type(error), error, error.__traceback__) if error else None
    )
    record.__dict__.update(extra)
    handler.handle(record)
    return stream.getvalue()


def raised(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize(("message", "args"), [(FORGED, ()), ("unknown: %s", (FORGED,)), ("unknown: %r", (FORGED,))])
def test_a_message_is_one_line_of_printable_characters(readable: bool, message: str, args: tuple[Any, ...]) -> None:
    line = written(message, *args, readable=readable)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    line.encode()  # a lone surrogate would raise here, and the line would be lost
    said = line if readable else json.loads(line)["message"]
    assert said.removesuffix("\n").isprintable()
    assert "x\\n2026-11-23" in said
    assert "\\x1b[31m" in said


@pytest.mark.parametrize("readable", [True, False])
def test_a_message_is_not_endless(readable: bool) -> None:
    line = written("unknown: %s, ignored", LONG, readable=readable)
    assert len(line) < 2_300
    assert "unknown: yyy" in line
    assert "yyy, ignored" in line
    assert len(written("unknown: %s", "\U000e0001\n" * 30_000, readable=readable)) < 5_000
    assert re.search(r"… 58\d{3} characters …|\\u2026 58\d{3} characters \\u2026", line)


@pytest.mark.parametrize("text", ["as ever", "ü, 漢字, “quoted”", "\\n is how a newline is written", "100 %"])
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert text in written(text, readable=True)
    assert json.loads(written(text, readable=False))["message"] == text


def test_a_traceback_stays_readable_and_forges_nothing() -> None:
    text = written("it failed", readable=True, error=raised(f"said {FORGED} {LONG}"))
    first, *others = text.splitlines()
    assert first.endswith("INFO    it failed")
    assert others[0] == "    Traceback (most recent call last):"
    assert any("raise ValueError(text)" in line for line in others)
    assert all(line.startswith("    ") for line in others)
    assert any("ValueError: said x" in line for line in others)
    assert all(line.isprintable() for line in others)
    assert len(text) < 21_000


def test_a_traceback_in_json_is_whole_but_not_endless() -> None:
    line = written("it failed", readable=False, error=raised(f"said {FORGED} {LONG}"))
    assert len(line) < 25_000
    traceback = json.loads(line)["exc_info"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "\x1b" not in traceback
    assert "\r" not in traceback


def test_the_record_is_left_as_it_was_for_other_handlers() -> None:
    record = logging.LogRecord("any", logging.INFO, "", 0, "said %s", (FORGED,), None)
    logs.ReadableFormatter("%(message)s").format(record)
    assert (record.msg, record.args) == ("said %s", (FORGED,))


@pytest.mark.parametrize("environment", ["development", "production"])
def test_of_the_sdk_that_logs_what_a_page_sends(environment: str, tmp_path: Path) -> None:
    """Its warning about an answer to a question that nobody asked."""
    with Service(
        CHATKIT_BACKEND="selfhosted", CHATKIT_ENV=environment, DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db"
    ) as service:
        for name in ("x\n2026-11-23 12:00:00.000 ERROR   forged", "x\x1b[31m", "z" * 50_000):
            caller = Caller(service.url)
            thread, events = caller.create("ask me a question")
            item = next(
                event.item for event in events if getattr(getattr(event, "item", None), "type", "") == "structured_input"
            )
            answers = {"answers": {name: {"values": ["Tea"]}}}
            list(caller.stream("threads.add_structured_input", thread_id=thread, item_id=item.id, input=answers))
    lines = service.log.splitlines()
    assert len([line for line in lines if "unknown question id(s)" in line]) == 3
    assert not [line for line in lines if "ERROR   forged" in line and "unknown question" not in line]
    assert "\x1b" not in service.log
    assert max(map(len, lines)) < 3_000
