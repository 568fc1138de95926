"""Logging: a line a request, and every line with the request's id and, once there is one, the session's."""

from __future__ import annotations

import copy
import logging
import re
import textwrap
import time
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

MAX_MESSAGE = 2_000  # characters; what a caller sent may be in it, and that may be long
MAX_TRACEBACK = 20_000

access_log = logging.getLogger("chatkit.access")

SUPERSEDED = "chatkit.superseded"
"""Set in the environ of a request that has been answered anew, and is logged once all the same."""


def configuration(level: str, *, readable: bool) -> dict[str, Any]:
    """A ``logging`` configuration that writes to standard output: JSON, or lines for a developer's eyes."""
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
            "httpx2": {"level": "WARNING"},  # a line for each call of a model
            "urllib3.connection": {"level": "ERROR"},  # its warnings quote headers that it can't parse
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            # The application writes its own line a request, which also exists without gunicorn.
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }


class IdsFilter(logging.Filter):
    """Adds ``request_id`` and ``session_id`` to each record, where there are any."""

    def filter(self, record: logging.LogRecord) -> bool:
        for variable in (request_id, session_id):
            value = variable.get()
            if value is not None and not hasattr(record, variable.name):
                setattr(record, variable.name, value)
        return True


class _SafeFormatter(logging.Formatter):
    """Escapes and shortens whatever is logged, because libraries log what callers send as it is."""

    def format(self, record: logging.LogRecord) -> str:
        safe = copy.copy(record)  # other handlers get the record as it was
        safe.msg, safe.args = _shortened(_escaped(record.getMessage()), MAX_MESSAGE), None
        return super().format(safe)

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return _several_lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  logging's name
        return _several_lines(super().formatStack(stack_info))


def _several_lines(text: str) -> str:
    return _shortened("\n".join(map(_escaped, text.split("\n"))), MAX_TRACEBACK)


def _escaped(text: str) -> str:
    """``text`` on one line, without characters that a terminal obeys or that can't be written."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _shortened(text: str, limit: int) -> str:
    """``text`` without its middle, where it is longer than ``limit``."""
    left_out = len(text) - limit
    return text if left_out <= 0 else f"{text[: limit // 2]} … {left_out} characters … {text[-limit // 2 :]}"


class JsonFormatter(_SafeFormatter, _JsonFormatter):
    """One JSON object a line."""


class ReadableFormatter(_SafeFormatter):
    """One line for a person: the message, then the ids. A traceback below it is indented, so that it can't pass for a line."""

    default_msec_format = "%s.%03d"

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return textwrap.indent(super().formatException(ei), "    ", lambda _line: True)

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  logging's name
        return textwrap.indent(super().formatStack(stack_info), "    ", lambda _line: True)

    def format(self, record: logging.LogRecord) -> str:
        ids = [f"{name}={getattr(record, name)}" for name in ("request_id", "session_id") if hasattr(record, name)]
        return "  ".join([super().format(record), *ids])


class RequestLog:
    """WSGI middleware: gives each request its id, answers with it, and logs the request when the answer is out."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started = environ.setdefault("chatkit.started", time.monotonic())
        known = environ.setdefault("chatkit.request_id", _sane(environ.get("HTTP_X_REQUEST_ID")) or new_request_id())
        request_id.set(known)
        session_id.set(None)
        sent = {"status": 0}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            sent["status"] = int(status[:3])
            with_id = Headers(headers)
            with_id["X-Request-ID"] = request_id.get()
            return start_response(status, with_id.to_wsgi_list(), exc_info)

        def finished() -> None:
            if not environ.get(SUPERSEDED):
                _log_request(environ, sent["status"], time.monotonic() - started)
            request_id.set(None)
            session_id.set(None)

        return ClosingIterator(self._app(environ, start), finished)


def new_request_id() -> str:
    """An id for a request that brought none."""
    return uuid.uuid4().hex


def _sane(given: str | None) -> str | None:
    """A caller's own id, unless it is none that should stand in a log."""
    return given if given and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else None


def _log_request(environ: WSGIEnvironment, status: int, seconds: float) -> None:
    method = environ["REQUEST_METHOD"]
    # Without the query, which is nobody's place for a secret but gets them all the same; quoted, so that it is one line.
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
