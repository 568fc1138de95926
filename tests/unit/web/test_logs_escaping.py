"""Data from callers can neither forge a log line nor make it arbitrarily long."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
from typing import Any

import pytest

from chatkit.web import logs

FORGED = "x\n2026-11-23 12:00:00.000 ERROR   forged\r\x1b[31m\x9b31m\u2028\u202e\ud800\0\x7f"
LONG = "y" * 60_000


def written(message: str, *args: Any, readable: bool, error: BaseException | None = None, **extra: Any) -> str:
    """Return what the configured handler writes."""
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
def test_message_is_one_printable_line(readable: bool, message: str, args: tuple[Any, ...]) -> None:
    line = written(message, *args, readable=readable)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    line.encode()  # raises for a lone surrogate, which would lose the line
    text = line if readable else json.loads(line)["message"]
    assert text.removesuffix("\n").isprintable()
    assert "x\\n2026-11-23" in text
    assert "\\x1b[31m" in text


@pytest.mark.parametrize("readable", [True, False])
def test_message_is_truncated(readable: bool) -> None:
    line = written("unknown: %s, ignored", LONG, readable=readable)
    assert len(line) < 2_300
    assert "unknown: yyy" in line
    assert "yyy, ignored" in line
    assert len(written("unknown: %s", "\U000e0001\n" * 30_000, readable=readable)) < 5_000
    assert re.search(r"… 58\d{3} characters …|\\u2026 58\d{3} characters \\u2026", line)


@pytest.mark.parametrize("text", ["as ever", "ü, 漢字, “quoted”", "\\n is how a newline is written", "100 %"])
def test_harmless_text_is_unchanged(text: str) -> None:
    assert text in written(text, readable=True)
    assert json.loads(written(text, readable=False))["message"] == text


def test_readable_traceback_is_indented_and_truncated() -> None:
    text = written("it failed", readable=True, error=raised(f"said {FORGED} {LONG}"))
    first, *others = text.splitlines()
    assert first.endswith("INFO    it failed")
    assert others[0] == "    Traceback (most recent call last):"
    assert any("raise ValueError(text)" in line for line in others)
    assert all(line.startswith("    ") for line in others)
    assert any("ValueError: said x" in line for line in others)
    assert all(line.isprintable() for line in others)
    assert len(text) < 21_000


def test_json_traceback_is_truncated() -> None:
    line = written("it failed", readable=False, error=raised(f"said {FORGED} {LONG}"))
    assert len(line) < 25_000
    traceback = json.loads(line)["exc_info"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "\x1b" not in traceback
    assert "\r" not in traceback


def test_record_is_not_changed() -> None:
    record = logging.LogRecord("any", logging.INFO, "", 0, "said %s", (FORGED,), None)
    logs.ReadableFormatter("%(message)s").format(record)
    assert (record.msg, record.args) == ("said %s", (FORGED,))
