"""Logging: one line per request, and in every line the request id and, if there is one, the session id."""

from __future__ import annotations

import copy
import logging
import re
import textwrap
import time
import traceback
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pythonjsonlogger.json import JsonFormatter as _JsonFormatter
from werkzeug.datastructures import Headers
from werkzeug.wsgi import ClosingIterator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
session_id: ContextVar[str | None] = ContextVar("session_id", default=None)

MAX_MESSAGE = 2_000  # characters; a message may quote what a caller sent
MAX_TRACEBACK = 20_000

access_log = logging.getLogger("chatkit.access")

SUPERSEDED = "chatkit.superseded"
"""The environ key that suppresses the request's log line, because another response follows and is logged instead."""


def configuration(level: str, *, readable: bool) -> dict[str, Any]:
    """Return a ``logging`` configuration that writes to standard output: JSON, or readable lines for development."""
    formatters = {
        "json": {
            "()": "chatkit.web.logs.JsonFormatter",
            "fmt": "{levelname}{name}{message}{process}",
            "style": "{",
            "timestamp": "time",  # in UTC
            "rename_fields": {"levelname": "level", "name": "logger"},
        },
        "readable": {"class": "chatkit.web.logs.ReadableFormatter", "format": "%(asctime)s %(levelname)-7s %(message)s"},
    }
    handler = {
        "class": "logging.StreamHandler",
        "stream": "ext://sys.stdout",
        "formatter": "readable" if readable else "json",
        "filters": ["ids"],
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"ids": {"()": "chatkit.web.logs.IdsFilter"}},
        "formatters": formatters,
        "handlers": {"stdout": handler},
        "root": {"level": level, "handlers": ["stdout"]},
        "loggers": {
            "alembic": {"level": "WARNING"},
            "httpx2": {"level": "WARNING"},  # it logs each call of a model
            "mcp": {"level": "WARNING"},  # it logs messages and addresses
            "urllib3.connection": {"level": "ERROR"},  # its warnings quote headers that it can't parse
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            # The application logs requests itself, also without gunicorn.
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }


class IdsFilter(logging.Filter):
    """Adds ``request_id`` and ``session_id`` to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        for variable in (request_id, session_id):
            value = variable.get()
            if value is not None and not hasattr(record, variable.name):
                setattr(record, variable.name, value)
        return True


quoting_errors: set[type[Exception]] = set()
"""Exceptions whose texts quote secrets. All that a traceback shows with one of them is logged without texts."""


def _quoting(error: BaseException | None) -> list[BaseException]:
    """Return all exceptions in the traceback of ``error``, itself first, if one of them is of ``quoting_errors``."""
    shown: list[BaseException] = []
    pending = [error]
    while pending:
        found = pending.pop(0)
        if found is not None and not any(found is other for other in shown):
            shown.append(found)
            pending += [found.__cause__, found.__context__, *getattr(found, "exceptions", ())]
    return shown if any(isinstance(found, tuple(quoting_errors)) for found in shown) else []


class _SafeFormatter(logging.Formatter):
    """Escapes and truncates all messages, because libraries log what callers send unescaped."""

    def format(self, record: logging.LogRecord) -> str:
        safe = copy.copy(record)  # other handlers get the original
        message = record.getMessage()
        for error in _quoting(record.exc_info[1]) if record.exc_info else ():
            for text in filter(None, (repr(error), str(error))):  # asyncio, and OpenAI's package, put it into the message
                message = message.replace(text, type(error).__name__)
        safe.msg, safe.args = _truncate(escape(message), MAX_MESSAGE), None
        return super().format(safe)

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        if quoting := _quoting(ei[1]):
            parts = (f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}" for error in quoting[::-1])
            return _escape_lines("\n".join(parts))
        return _escape_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  logging's name
        return _escape_lines(super().formatStack(stack_info))


def _escape_lines(text: str) -> str:
    return _truncate("\n".join(map(escape, text.split("\n"))), MAX_TRACEBACK)


def escape(text: str) -> str:
    """Escape line breaks, terminal control characters and what can't be encoded."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _truncate(text: str, limit: int) -> str:
    """Cut the middle out of ``text`` if it is longer than ``limit``."""
    excess = len(text) - limit
    return text if excess <= 0 else f"{text[: limit // 2]} … {excess} characters … {text[-limit // 2 :]}"


class JsonFormatter(_SafeFormatter, _JsonFormatter):
    """One JSON object per line."""


class ReadableFormatter(_SafeFormatter):
    """The message, then the ids. Tracebacks are indented, so that their lines can't be mistaken for messages."""

    default_msec_format = "%s.%03d"

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return textwrap.indent(super().formatException(ei), "    ", lambda _line: True)

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  logging's name
        return textwrap.indent(super().formatStack(stack_info), "    ", lambda _line: True)

    def format(self, record: logging.LogRecord) -> str:
        ids = [f"{name}={getattr(record, name)}" for name in ("request_id", "session_id") if hasattr(record, name)]
        return "  ".join([super().format(record), *ids])


class RequestLog:
    """WSGI middleware that sets the request id, adds ``X-Request-ID`` to the response and logs the request at its end."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started = environ.setdefault("chatkit.started", time.monotonic())
        if "chatkit.request_id" not in environ:  # else the request is answered again, with an error
            session_id.set(None)
        id_ = environ.setdefault("chatkit.request_id", _valid_id(environ.get("HTTP_X_REQUEST_ID")) or new_request_id())
        request_id.set(id_)
        sent = {"status": 0}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            sent["status"] = int(status[:3])
            with_id = Headers(headers)
            with_id["X-Request-ID"] = request_id.get()
            return start_response(status, with_id.to_wsgi_list(), exc_info)

        def finished() -> None:
            if environ.get(SUPERSEDED):
                return
            _log_request(environ, sent["status"], time.monotonic() - started)
            request_id.set(None)
            session_id.set(None)

        return ClosingIterator(self._app(environ, start), finished)


def new_request_id() -> str:
    return uuid.uuid4().hex


def _valid_id(text: str | None) -> str | None:
    return text if text and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", text) else None


def _log_request(environ: WSGIEnvironment, status: int, seconds: float) -> None:
    method = environ["REQUEST_METHOD"]
    # Without the query string, because clients may put secrets there; quoted, so that it stays on one line.
    path = quote(environ.get("PATH_INFO", "").encode("latin-1"), safe="/")[:200]
    milliseconds = round(seconds * 1000, 1)
    access_log.info(
        "%s %s %d in %.1f ms",
        method,
        path,
        status,
        milliseconds,
        extra={"method": method, "path": path, "status": status, "duration_ms": milliseconds},
    )
