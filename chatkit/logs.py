"""Logging: a line a request, and every line with the request's id and, once there is one, the session's."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug.datastructures import Headers
from werkzeug.wsgi import ClosingIterator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
session_id: ContextVar[str | None] = ContextVar("session_id", default=None)

access_log = logging.getLogger("chatkit.access")


def configuration(level: str, *, readable: bool) -> dict[str, Any]:
    """A ``logging`` configuration that writes to standard output: JSON, or lines for a developer's eyes."""
    formatters = {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "{levelname}{name}{message}{process}",
            "style": "{",
            "timestamp": "time",  # in UTC
            "rename_fields": {"levelname": "level", "name": "logger"},
        },
        "readable": {"class": "chatkit.logs.ReadableFormatter", "format": "%(asctime)s %(levelname)-7s %(message)s"},
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
        "filters": {"ids": {"()": "chatkit.logs.IdsFilter"}},
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


class ReadableFormatter(logging.Formatter):
    """One line for a person: the message, then the ids."""

    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        ids = [f"{name}={getattr(record, name)}" for name in ("request_id", "session_id") if hasattr(record, name)]
        return "  ".join([super().format(record), *ids])


class RequestLog:
    """WSGI middleware: gives each request its id, answers with it, and logs the request when the answer is out."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started = time.monotonic()
        request_id.set(_sane(environ.get("HTTP_X_REQUEST_ID")) or new_request_id())
        session_id.set(None)
        sent = {"status": 0}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            sent["status"] = int(status[:3])
            with_id = Headers(headers)
            with_id["X-Request-ID"] = request_id.get()
            return start_response(status, with_id.to_wsgi_list(), exc_info)

        def finished() -> None:
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
