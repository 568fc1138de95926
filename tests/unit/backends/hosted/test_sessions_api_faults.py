"""Failures of the fake_openai, over real HTTP, and the contract's error for each."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from chatkit.backends.hosted import sessions_api
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, issue_session, issuing, session
from tests.support.fake_server import Behaviour, Handler, dripping, endless, responding, sending, silent
from tests.support.service import free_port

REJECTED = (401, "openai_authentication_failed", "OpenAI authentication failed")
LIMITED = (429, "openai_rate_limited", "Rate limited by OpenAI. Please try again in a moment.")
NO_SESSION = (500, "openai_session_not_created", "OpenAI service error: Could not create session")
UNAVAILABLE = (503, "openai_unavailable", "OpenAI service temporarily unavailable")

SESSION = json.dumps(session()).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

FAILURES: dict[str, tuple[Behaviour, tuple[int, str, str]]] = {
    "key rejected": (failing(401, "invalid_api_key"), REJECTED),
    "rate limited": (failing(429, "rate_limit_exceeded"), LIMITED),
    "insufficient quota": (failing(429, "insufficient_quota"), LIMITED),
    "bad request": (failing(400, "invalid_request_error"), NO_SESSION),
    "forbidden": (failing(403, "unsupported_country_region_territory"), NO_SESSION),
    "workflow not found": (failing(404, "not_found"), NO_SESSION),
    "conflict": (failing(409, "conflict"), NO_SESSION),
    "teapot": (responding(418), NO_SESSION),
    "no content": (responding(204), NO_SESSION),
    "html": (responding(200, b"<html>It works!</html>", Content_Type="text/html"), NO_SESSION),
    "empty body": (responding(200, b""), NO_SESSION),
    "not json": (responding(200, SESSION[:-5]), NO_SESSION),
    "not utf-8": (responding(200, b"\xff\xfe\xfd"), NO_SESSION),
    "an array": (responding(200, b"[" + SESSION + b"]"), NO_SESSION),
    "deeply nested": (responding(200, b"[" * 100_000), NO_SESSION),
    "no secret": (issuing(client_secret=None), NO_SESSION),
    "empty secret": (issuing(client_secret=""), NO_SESSION),
    "secret is not a string": (issuing(client_secret=["a"]), NO_SESSION),
    "no id": (issuing(id=None), NO_SESSION),
    "empty id": (issuing(id=""), NO_SESSION),
    "too long": (responding(200, SESSION + b" " * 300_000), NO_SESSION),
    "endless": (endless, NO_SESSION),
    "endless chunks of a byte": (
        sending(CHUNKED + b"1\r\n \r\n" * 100_000 + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SESSION), SESSION)),
        NO_SESSION,
    ),
    "gzip bomb": (responding(200, gzip.compress(b" " * 200_000_000), Content_Encoding="gzip"), NO_SESSION),
    "invalid gzip": (responding(200, SESSION, Content_Encoding="gzip"), NO_SESSION),
    "internal error": (failing(500, "server_error"), UNAVAILABLE),
    "bad gateway": (responding(502, b"<html>cloudflare</html>"), UNAVAILABLE),
    "overloaded": (responding(503), UNAVAILABLE),
    "gateway timeout": (responding(504), UNAVAILABLE),
    "endless error": (sending(b"HTTP/1.1 500 Oh\r\n\r\n" + b"x" * 10_000_000), UNAVAILABLE),
    "connection closed": (Handler.hang_up, UNAVAILABLE),
    "connection closed in the headers": (sending(HEAD), UNAVAILABLE),
    "connection closed in the body": (sending(HEAD + b"Content-Length: 5000\r\n\r\n" + SESSION), UNAVAILABLE),
    "invalid chunks": (sending(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + SESSION), UNAVAILABLE),
    "truncated chunks": (sending(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n" + SESSION), UNAVAILABLE),
    "not http": (sending(b"SSH-2.0-OpenSSH_9.2\r\n"), UNAVAILABLE),
    "endless header": (sending(HEAD + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n"), UNAVAILABLE),
    "endless headers": (sending(HEAD + b"X-More: x\r\n" * 10_000), UNAVAILABLE),
    "silent": (silent(5), UNAVAILABLE),
    "slow status line": (dripping(b"HTTP/1.1 200 ", 5), UNAVAILABLE),
    "slow headers": (dripping(HEAD + b"X-Slow: ", 5), UNAVAILABLE),
    "slow body": (dripping(HEAD + b"Content-Length: 5000\r\n\r\n", 5), UNAVAILABLE),
    "slow error": (dripping(b"HTTP/1.1 401 No\r\nContent-Length: 5000\r\n\r\n", 5), UNAVAILABLE),
}


@pytest.fixture(autouse=True)
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second instead of ten. tests/service/test_gunicorn.py covers the real budget."""
    monkeypatch.setattr(sessions_api, "CALL_SECONDS", 1.0)


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_mapped_to_an_error(client: FlaskClient, fake_openai: FakeOpenAI, case: str) -> None:
    fake_openai.behaviour, expected = FAILURES[case]
    started = time.monotonic()
    response = client.post(ENDPOINT)
    assert time.monotonic() - started < 3  # not the 5 s of the fake_openai
    assert error_of(response) == expected
    assert ("Retry-After" in response.headers) is (response.status_code in (429, 503))
    assert API_KEY not in response.text
    assert WORKFLOW_ID not in response.text


@pytest.mark.parametrize(("size", "status"), [(256 * 1024, 200), (256 * 1024 + 1, 500)])
def test_size_of_an_answer(client: FlaskClient, fake_openai: FakeOpenAI, size: int, status: int) -> None:
    fake_openai.behaviour = responding(200, SESSION.ljust(size))
    assert client.post(ENDPOINT).status_code == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(client: FlaskClient, fake_openai: FakeOpenAI, status: int) -> None:
    with FakeOpenAI() as elsewhere:
        fake_openai.behaviour = responding(status, Location=f"{elsewhere.url}/v1/chatkit/sessions")
        assert error_of(client.post(ENDPOINT)) == NO_SESSION
        assert elsewhere.received == []
        assert elsewhere.connections == 0


def test_connection_refused(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_api, "CALL_SECONDS", 30)
    client = make_app(CHATKIT_API_BASE=f"http://127.0.0.1:{free_port()}").test_client()
    started = time.monotonic()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE
    assert time.monotonic() - started < 10, "it is known at once"


def test_unresolvable_host(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_API_BASE="https://nowhere.invalid").test_client()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE


def test_hanging_name_resolution_is_bounded(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(5) and [])
    client = make_app(CHATKIT_API_BASE="https://api.openai.com").test_client()
    started = time.monotonic()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE
    assert time.monotonic() - started < 3  # not the 5 s of the fake_openai
    released.set()


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue is full and that accepts nothing, so that connecting never completes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for sock in waiting:
            sock.close()


def test_hanging_connect_is_bounded(make_app: MakeApp, full_port: int) -> None:
    client = make_app(CHATKIT_API_BASE=f"http://127.0.0.1:{full_port}").test_client()
    started = time.monotonic()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE
    assert time.monotonic() - started < 3  # not the 5 s of the fake_openai


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", "7"), ("", "10"), ("99999", "600"), ("Wed, 21 Oct 2026 07:28:00 GMT", "10")],
)
def test_retry_after_is_passed_on(client: FlaskClient, fake_openai: FakeOpenAI, header: str, seconds: str) -> None:
    fake_openai.behaviour = responding(429, Retry_After=header)
    assert client.post(ENDPOINT).headers["Retry-After"] == seconds


def test_broken_connection_is_retried_once(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    def break_once(handler: Handler) -> None:
        fake_openai.behaviour = issue_session
        handler.hang_up()

    fake_openai.behaviour = break_once
    assert client.post(ENDPOINT).status_code == 200
    assert len(fake_openai.received) == 2


def test_errors_and_timeouts_are_not_retried(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    for behaviour in (failing(401, "invalid_api_key"), failing(500, "server_error"), silent(5)):
        fake_openai.received.clear()
        fake_openai.behaviour = behaviour
        client.post(ENDPOINT)
        assert len(fake_openai.received) == 1


def test_endless_response_uses_bounded_memory(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = endless
    tracemalloc.start()
    client.post(ENDPOINT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


def test_log_names_the_upstream_request_id_and_the_likely_cause(
    client: FlaskClient, fake_openai: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    fake_openai.behaviour = failing(404, "not_found", X_Request_ID="req_4f2a")
    client.post(ENDPOINT)
    assert "OpenAI answered 404 (request req_4f2a, not_found)" in caplog.text
    assert "another project" in caplog.text
    assert "quoted" not in caplog.text
