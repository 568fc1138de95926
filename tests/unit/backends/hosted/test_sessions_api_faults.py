"""Failures of OpenAI, over real HTTP, and the contract's error for each."""

from __future__ import annotations

import gzip
import json
import time

import pytest
from flask.testing import FlaskClient

from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, issuing, session
from tests.support.fake_server import Behaviour, Handler, dripping, endless, responding, sending, silent

REJECTED = (401, "openai_authentication_failed", "OpenAI authentication failed")
LIMITED = (429, "openai_rate_limited", "Rate limited by OpenAI. Please try again in a moment.")
NO_SESSION = (500, "openai_session_not_created", "OpenAI service error: Could not create session")
UNAVAILABLE = (503, "openai_unavailable", "OpenAI service temporarily unavailable")

SESSION = json.dumps(session()).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

pytestmark = pytest.mark.usefixtures("short_budget")

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
    "silent": (silent(30), UNAVAILABLE),
    "slow status line": (dripping(b"HTTP/1.1 200 ", 30), UNAVAILABLE),
    "slow headers": (dripping(HEAD + b"X-Slow: ", 30), UNAVAILABLE),
    "slow body": (dripping(HEAD + b"Content-Length: 5000\r\n\r\n", 30), UNAVAILABLE),
    "slow error": (dripping(b"HTTP/1.1 401 No\r\nContent-Length: 5000\r\n\r\n", 30), UNAVAILABLE),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_mapped_to_an_error(client: FlaskClient, fake_openai: FakeOpenAI, case: str) -> None:
    fake_openai.behaviour, expected = FAILURES[case]
    started = time.monotonic()
    response = client.post(ENDPOINT)
    assert time.monotonic() - started < 20  # not the 30 s of the fake OpenAI
    assert error_of(response) == expected
    assert ("Retry-After" in response.headers) is (response.status_code in (429, 503))
    assert API_KEY not in response.text
    assert WORKFLOW_ID not in response.text


@pytest.mark.parametrize(("size", "status"), [(256 * 1024, 200), (256 * 1024 + 1, 500)])
def test_size_of_an_answer(client: FlaskClient, fake_openai: FakeOpenAI, size: int, status: int) -> None:
    fake_openai.behaviour = responding(200, SESSION.ljust(size))
    assert client.post(ENDPOINT).status_code == status


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", "7"), ("", "10"), ("99999", "600"), ("Wed, 21 Oct 2026 07:28:00 GMT", "10")],
)
def test_retry_after_is_passed_on(client: FlaskClient, fake_openai: FakeOpenAI, header: str, seconds: str) -> None:
    fake_openai.behaviour = responding(429, Retry_After=header)
    assert client.post(ENDPOINT).headers["Retry-After"] == seconds


def test_log_names_the_request_id_of_openai_and_the_likely_cause(
    client: FlaskClient, fake_openai: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    fake_openai.behaviour = failing(404, "not_found", X_Request_ID="req_4f2a")
    client.post(ENDPOINT)
    assert "OpenAI answered 404 (request req_4f2a, not_found)" in caplog.text
    assert "another project" in caplog.text
    assert "quoted" not in caplog.text


@pytest.mark.parametrize("status", [302, 400, 403, 404, 410])
def test_log_says_what_to_do_after_the_end_of_hosted_workflows(
    client: FlaskClient, fake_openai: FakeOpenAI, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    fake_openai.behaviour = failing(status, "gone")
    client.post(ENDPOINT)
    assert "hosted workflows have ended, set CHATKIT_BACKEND=selfhosted" in caplog.text
