"""Requests to OpenAI's Sessions API, compared with those of OpenAI's SDK, and how responses are read."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import openai
import pytest
import requests_mock
import trustme
from flask.testing import FlaskClient

from chatkit.identity.user import User
from chatkit.settings import Settings
from tests.support.endpoint import ENDPOINT, USER
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, delayed, issue_session, issuing, session
from tests.support.fake_server import responding
from tests.support.hosted import COMPLETE, sessions_api, what_counts
from tests.support.service import SECRET_KEY

ARGUMENTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "nothing set": ({}, {}),
    "version": ({"CHATKIT_WORKFLOW_VERSION": "3"}, {"workflow": {"id": WORKFLOW_ID, "version": "3"}}),
    "time to live": ({"CHATKIT_SESSION_TTL": "600"}, {"expires_after": {"anchor": "created_at", "seconds": 600}}),
    "limit": ({"CHATKIT_MAX_REQUESTS_PER_MINUTE": "5"}, {"rate_limits": {"max_requests_per_1_minute": 5}}),
    "uploads off": ({"CHATKIT_FILE_UPLOAD": "false"}, {"chatkit_configuration": {"file_upload": {"enabled": False}}}),
    "traces off": ({"CHATKIT_TRACING": "no"}, {"workflow": {"id": WORKFLOW_ID, "tracing": {"enabled": False}}}),
    "everything": (
        {
            "CHATKIT_WORKFLOW_VERSION": "12",
            "CHATKIT_SESSION_TTL": "120",
            "CHATKIT_MAX_REQUESTS_PER_MINUTE": "30",
            "CHATKIT_FILE_UPLOAD": "true",
            "CHATKIT_FILE_UPLOAD_MAX_FILES": "4",
            "CHATKIT_FILE_UPLOAD_MAX_MB": "8",
            "CHATKIT_HISTORY": "on",
            "CHATKIT_HISTORY_RECENT_THREADS": "7",
        },
        {
            "workflow": {"id": WORKFLOW_ID, "version": "12"},
            "expires_after": {"anchor": "created_at", "seconds": 120},
            "rate_limits": {"max_requests_per_1_minute": 30},
            "chatkit_configuration": {
                "file_upload": {"enabled": True, "max_files": 4, "max_file_size": 8},
                "history": {"enabled": True, "recent_threads": 7},
            },
        },
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_request_equals_the_one_of_openais_sdk(fake_openai: FakeOpenAI, case: str) -> None:
    variables, arguments = ARGUMENTS[case]
    with openai.OpenAI(api_key=API_KEY, base_url=f"{fake_openai.url}/v1", max_retries=0) as sdk:
        theirs = sdk.beta.chatkit.sessions.create(**cast(Any, {"user": USER.id, "workflow": {"id": WORKFLOW_ID}, **arguments}))
    ours = sessions_api(fake_openai.url, **variables).issue(USER)
    sent_by_them, sent_by_us = map(what_counts, fake_openai.received)
    assert sent_by_us == sent_by_them
    assert ours.client_secret.startswith("ek_test_")
    assert theirs.client_secret.startswith("ek_test_")


SIGNED_IN = User("user", "ada", claims={"email": "ada@example.com", "seats": 3, "share": 0.5, "admin": False})


def test_workflow_and_state_variables_of_a_user(fake_openai: FakeOpenAI) -> None:
    variables = {"CHATKIT_WORKFLOW_VERSION": "3", "CHATKIT_WORKFLOWS": "pro=wf_test_pro"}
    issuer = sessions_api(fake_openai.url, CHATKIT_AGENT_CLAIM="plan", **variables)
    with openai.OpenAI(api_key=API_KEY, base_url=f"{fake_openai.url}/v1", max_retries=0) as sdk:
        for workflow in ({"id": "wf_test_pro"}, {"id": WORKFLOW_ID, "version": "3"}):
            state: Any = {**workflow, "state_variables": dict(SIGNED_IN.claims)}
            sdk.beta.chatkit.sessions.create(user="user:ada", workflow=state)
    issuer.issue(replace(SIGNED_IN, agent="pro"))
    issuer.issue(SIGNED_IN)
    theirs, ours = fake_openai.received[:2], fake_openai.received[2:]
    assert [received.body for received in ours] == [received.body for received in theirs]


def test_unset_options_are_not_sent(fake_openai: FakeOpenAI) -> None:
    sessions_api(fake_openai.url).issue(USER)
    assert fake_openai.received[0].body == {"user": USER.id, "workflow": {"id": WORKFLOW_ID}}


def test_openai_is_told_the_id_of_the_request(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    response = client.post(ENDPOINT)
    assert fake_openai.received[0].headers["x-client-request-id"] == response.headers["X-Request-ID"]


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


def test_upstream_cookies_are_not_kept_between_users(fake_openai: FakeOpenAI) -> None:
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


@pytest.mark.parametrize(
    ("expires_at", "ttl", "expected"),
    [
        (300, "600", 300),  # OpenAI's expiry is earlier than requested
        (600, "600", 600),
        (590, "60", 60),  # OpenAI's clock is ahead
        (-900, "600", 600),  # OpenAI's clock is behind
        (10**9, "600", 600),
        (float("nan"), "600", 600),
        ("soon", "600", 600),
        (None, "30", 30),
    ],
)
def test_expiry(fake_openai: FakeOpenAI, expires_at: Any, ttl: str, expected: int) -> None:
    if isinstance(expires_at, int | float):
        expires_at = time.time() + expires_at
    fake_openai.behaviour = issuing(expires_at=expires_at)
    issued = sessions_api(fake_openai.url, CHATKIT_SESSION_TTL=ttl).issue(USER)
    assert (issued.expires_at - datetime.now(UTC)).total_seconds() == pytest.approx(expected, abs=2)


def test_secrets_are_not_in_repr(fake_openai: FakeOpenAI) -> None:
    assert "ek_test_" not in repr(sessions_api(fake_openai.url).issue(USER))
    assert API_KEY not in repr(Settings.load(COMPLETE))
    assert WORKFLOW_ID not in repr(Settings.load(COMPLETE))
    assert SECRET_KEY not in repr(Settings.load(COMPLETE))


@pytest.mark.parametrize("encoding", [{}, {"Content-Encoding": "gzip"}])
def test_response_is_parsed(encoding: dict[str, str]) -> None:
    import gzip
    import json

    content = json.dumps(session(id="cksess_1", client_secret="ek_test_1")).encode()
    issuer = sessions_api("https://api.openai.com")
    with requests_mock.Mocker(session=issuer.http) as mocked:
        mocked.post(
            "https://api.openai.com/v1/chatkit/sessions",
            content=gzip.compress(content) if encoding else content,
            headers=encoding,
        )
        issued = issuer.issue(USER)
    assert (issued.session_id, issued.client_secret) == ("cksess_1", "ek_test_1")


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
