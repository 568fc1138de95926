"""One log line per request, with its ids and without secrets."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from chatkit.web import logs
from tests.support.applications import Start
from tests.support.endpoint import ENDPOINT
from tests.support.leaks import Recorder
from tests.support.waiting import wait_for


def written(name: str, *, readable: bool, message: object = "said %s", error: Exception | None = None) -> str:
    """Return what the configured handler writes for a record of logger ``name``."""
    config = logs.configuration("INFO", readable=readable)
    chosen = config["formatters"][config["handlers"]["stdout"]["formatter"]]
    formatter = logging.config.DictConfigurator(config).configure_formatter(dict(chosen))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(logs.IdsFilter())
    exc_info = (type(error), error, error.__traceback__) if error else None
    handler.handle(logging.LogRecord(name, logging.INFO, "", 0, message, () if error else ("this",), exc_info))
    return stream.getvalue()


@pytest.fixture
def ids() -> Any:
    tokens = logs.request_id.set("req-1"), logs.session_id.set("ses_1")
    yield
    logs.request_id.reset(tokens[0])
    logs.session_id.reset(tokens[1])


def test_json_line(ids: None) -> None:
    line = json.loads(written("chatkit", readable=False))
    assert line.pop("time")
    assert line.pop("process")
    assert line == {"level": "INFO", "logger": "chatkit", "message": "said this", "request_id": "req-1", "session_id": "ses_1"}


def test_readable_line(ids: None) -> None:
    assert re.fullmatch(
        r"[\d-]+ [\d:.]+ INFO    said this  request_id=req-1  session_id=ses_1\n", written("chatkit", readable=True)
    )


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:  # noqa: BLE001
        return caught


class QuotingError(Exception):
    """As OpenAI's, of which the text quotes the key."""


TEXT = "Incorrect key 'quoted-7'\nYou can't use it"


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        raised(QuotingError(TEXT)),
        raised(KeyError(TEXT), raised(QuotingError(TEXT))),
        raised(QuotingError(TEXT), raised(KeyError(TEXT))),
        raised(ExceptionGroup(TEXT, [KeyError("another"), raised(LookupError(TEXT), QuotingError(TEXT))])),
    ],
    ids=["itself", "a cause", "with a cause", "in a group"],
)
def test_exceptions_that_quote_secrets(monkeypatch: pytest.MonkeyPatch, error: Exception, readable: bool) -> None:
    monkeypatch.setattr(logs, "quoting_errors", {QuotingError})
    for message in ("failed", f"Task exception was never retrieved\nfuture: {error!r}", error):
        line = written("chatkit", readable=readable, message=message, error=error)
        assert "quoted-7" not in line
        assert "can't use" not in line
        assert "raise error from cause" in line
        assert type(error).__name__ in line
        assert "QuotingError" in line


def test_other_exceptions_are_logged_with_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "quoting_errors", {QuotingError})
    error = raised(KeyError("a detail"), raised(OSError("the disk is full")))
    line = written("chatkit", readable=False, message="failed", error=error)
    assert "KeyError: 'a detail'" in line
    assert "OSError: the disk is full" in line


def access_record(caplog: pytest.LogCaptureFixture) -> Any:
    (record,) = [record for record in caplog.records if record.name == "chatkit.access"]
    return record


def test_one_line_per_request(client: FlaskClient, caplog: pytest.LogCaptureFixture, recorder: Recorder) -> None:
    caplog.set_level(logging.INFO)
    response = client.post(f"{ENDPOINT}?token=hidden", headers={"X-Request-ID": "given-by-the-router"}, buffered=True)
    record = access_record(caplog)
    assert (record.method, record.path, record.status) == ("POST", ENDPOINT, 200)
    assert 0 < record.duration_ms < 5000
    line = json.loads(recorder.lines[-1])
    assert line["request_id"] == "given-by-the-router"
    session_id = response.get_json()["data"]["session_id"]
    assert line["session_id"] == session_id
    assert "hidden" not in caplog.text
    client.delete(f"{ENDPOINT}/{session_id}", buffered=True)
    assert json.loads(recorder.lines[-1])["session_id"] == session_id


def test_error_outside_of_the_view_has_the_session_id(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """It is raised on the event loop, after the view has ended, and answered by calling the application again."""
    caplog.handler.addFilter(logs.IdsFilter())
    response = start().post("threads.get_by_id", thread_id="thr_unknown")
    assert response.status_code == 404
    request_id = response.headers["X-Request-ID"]

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "request_id", None) == request_id]

    wait_for(lambda: any(line.name == "chatkit.access" for line in lines()))
    shown = [line for line in lines() if line.levelno >= logging.INFO]
    assert [getattr(line, "session_id", None) is not None for line in shown] == [True, True], shown


@pytest.mark.parametrize("path", ["/a\r\nINFO forged", "/%0d%0aforged", "/\x1b[31mred", "/ü"])
def test_path_cannot_forge_a_line(client: FlaskClient, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level(logging.INFO)
    client.get(path, buffered=True)
    assert re.fullmatch(r"/[A-Za-z0-9%/._-]*", access_record(caplog).path)


def test_ids_are_reset_after_the_request(client: FlaskClient, recorder: Recorder) -> None:
    client.post(ENDPOINT, buffered=True)
    client.get("/healthz", buffered=True)
    assert "session_id" not in json.loads(recorder.lines[-1])
    assert logs.request_id.get() is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-DEF_1.2:3", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("ü", False),
        ('"}', False),
    ],
)
def test_request_id(client: FlaskClient, given: str, kept: bool) -> None:
    returned = client.post(ENDPOINT, headers={"X-Request-ID": given}).headers.getlist("X-Request-ID")
    assert len(returned) == 1
    assert (returned[0] == given) is kept
    assert kept or re.fullmatch(r"[0-9a-f]{32}", returned[0])
