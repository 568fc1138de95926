"""Calls over real HTTP, by the client of OpenAI's Sessions API: bounded in time and size, and on pooled connections."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustme
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, USER, error_of
from tests.support.fake_openai import API_KEY, FakeOpenAI, delayed, failing, issue_session, session
from tests.support.fake_server import Handler, endless, responding, silent
from tests.support.hosted import sessions_api
from tests.support.service import free_port

NO_SESSION = (500, "openai_session_not_created", "OpenAI service error: Could not create session")
UNAVAILABLE = (503, "openai_unavailable", "OpenAI service temporarily unavailable")


def test_connection_is_reused(fake_openai: FakeOpenAI) -> None:
    issuer = sessions_api(fake_openai.url)
    for _ in range(10):
        issuer.issue(USER)
    assert fake_openai.connections == 1
    fake_openai.behaviour = responding(401, b'{"error": {}}')
    for _ in range(3):
        with pytest.raises(Exception, match="401"):
            issuer.issue(USER)
    assert fake_openai.connections == 1


def test_concurrent_calls_do_not_wait_for_each_other(fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = delayed(1)
    issuer = sessions_api(fake_openai.url, GUNICORN_THREADS="20")
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        ids = {issued.session_id for issued in pool.map(issuer.issue, [USER] * 20)}
    assert len(ids) == 20
    assert time.monotonic() - started < 10
    assert fake_openai.connections == 20


def test_cookies_of_openai_are_not_kept_between_users(fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = lambda handler: handler.respond(200, session(), Set_Cookie="who=first; Path=/")
    issuer = sessions_api(fake_openai.url)
    issuer.issue(USER)
    issuer.issue(USER)
    assert "cookie" not in fake_openai.received[1].headers


def test_proxy_variables_and_netrc_are_ignored(fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    sessions_api(fake_openai.url).issue(USER)
    assert fake_openai.received[0].headers["authorization"] == f"Bearer {API_KEY}"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_openai(authority: trustme.CA) -> Iterator[FakeOpenAI]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with FakeOpenAI(tls=context) as running:
        yield running


def test_tls(tls_openai: FakeOpenAI, authority: trustme.CA, tmp_path: Any) -> None:
    issuer = sessions_api(tls_openai.url)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issuer.http.verify = str(tmp_path / "ca.pem")
    tls_openai.behaviour = issue_session
    for _ in range(3):
        assert re.match("cksess_", issuer.issue(USER).session_id)
    assert tls_openai.connections == 1


def test_untrusted_certificate_is_refused(tls_openai: FakeOpenAI) -> None:
    with pytest.raises(Exception, match="no response from OpenAI"):
        sessions_api(tls_openai.url).issue(USER)
    assert tls_openai.received == []


@pytest.mark.usefixtures("short_budget")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(client: FlaskClient, fake_openai: FakeOpenAI, status: int) -> None:
    with FakeOpenAI() as elsewhere:
        fake_openai.behaviour = responding(status, Location=f"{elsewhere.url}/v1/chatkit/sessions")
        assert error_of(client.post(ENDPOINT)) == NO_SESSION
        assert elsewhere.received == []
        assert elsewhere.connections == 0


@pytest.mark.usefixtures("short_budget")
def test_connection_refused(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatkit.backends.hosted.sessions_api.CALL_SECONDS", 30)
    client = make_app(CHATKIT_API_BASE=f"http://127.0.0.1:{free_port()}").test_client()
    started = time.monotonic()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE
    assert time.monotonic() - started < 10, "it is known at once"


@pytest.mark.usefixtures("short_budget")
def test_unresolvable_host(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_API_BASE="https://nowhere.invalid").test_client()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE


@pytest.mark.usefixtures("short_budget")
def test_hanging_name_resolution_is_bounded(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30) and [])
    client = make_app(CHATKIT_API_BASE="https://api.openai.com").test_client()
    started = time.monotonic()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE
    assert time.monotonic() - started < 20  # not the 30 s of the resolution
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


@pytest.mark.usefixtures("short_budget")
def test_hanging_connect_is_bounded(make_app: MakeApp, full_port: int) -> None:
    client = make_app(CHATKIT_API_BASE=f"http://127.0.0.1:{full_port}").test_client()
    started = time.monotonic()
    assert error_of(client.post(ENDPOINT)) == UNAVAILABLE
    assert time.monotonic() - started < 20  # the operating system gives up after minutes


@pytest.mark.usefixtures("short_budget")
def test_broken_connection_is_retried_once(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    def break_once(handler: Handler) -> None:
        fake_openai.behaviour = issue_session
        handler.hang_up()

    fake_openai.behaviour = break_once
    assert client.post(ENDPOINT).status_code == 200
    assert len(fake_openai.received) == 2


@pytest.mark.usefixtures("short_budget")
def test_errors_and_timeouts_are_not_retried(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    for behaviour in (failing(401, "invalid_api_key"), failing(500, "server_error"), silent(30)):
        fake_openai.received.clear()
        fake_openai.behaviour = behaviour
        client.post(ENDPOINT)
        assert len(fake_openai.received) == 1


@pytest.mark.usefixtures("short_budget")
def test_endless_response_uses_bounded_memory(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = endless
    tracemalloc.start()
    client.post(ENDPOINT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
