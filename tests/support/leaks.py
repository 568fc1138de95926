"""The search for secrets in the logs."""

from __future__ import annotations

import logging
import re

from pythonjsonlogger.json import JsonFormatter

from chatkit.web import logs
from tests.support.fake_openai import API_KEY, SECRET_PREFIX
from tests.support.identity_provider import SECRET
from tests.support.service import SECRET_KEY

SHAPES = [
    API_KEY,
    "wf_test_",
    SECRET_KEY,
    SECRET_PREFIX,
    "sk-test",
    r"\bcs_[A-Za-z0-9_-]{27}",
    r"chatkit_visitor=",
    SECRET,
    r"\beyJ[A-Za-z0-9_-]+\.eyJ",
]
"""Patterns that match every secret of the tests."""


def leaks(logged: str) -> list[str]:
    """The matches in ``logged``, each with the preceding 300 characters."""
    return [logged[max(found.start() - 300, 0) : found.end()] for shape in SHAPES for found in re.finditer(shape, logged)]


class Recorder(logging.Handler):
    """Keeps every record from DEBUG up, formatted."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(JsonFormatter("{levelname}{name}{message}", style="{"))
        self.addFilter(logs.IdsFilter())
        # OpenAI's SDK serves as a reference here, is not part of the service, and logs whole requests at DEBUG.
        self.addFilter(lambda record: not record.name.startswith(("openai", "httpcore", "httpx")))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
