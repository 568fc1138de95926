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
from tests.support.endpoint import ENDPOINT
from tests.support.leaks import Recorder


def written(name: str, *, readable: bool) -> str:
    """Return what the configured handler writes for a record of logger ``name``."""
    config = logs.configuration("INFO", readable=readable)
    chosen = config["formatters"][config["handlers"]["stdout"]["formatter"]]
    formatter = logging.config.DictConfigurator(config).configure_formatter(dict(chosen))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(logs.IdsFilter())
    handler.handle(logging.LogRecord(name, logging.INFO, "", 0, "said %s", ("this",), None))
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
    assert line["session_id"] == response.get_json()["data"]["session_id"]
    assert "hidden" not in caplog.text


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
