"""Requests to OpenAI's Sessions API, compared with those of OpenAI's SDK, and how responses are read."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import openai
import openai.resources.beta.beta  # before the tests' processes are forked: each would need 0.4 s
import pytest
import requests_mock
from flask.testing import FlaskClient

from chatkit.identity.user import User
from chatkit.settings import Settings
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, USER, create_session, error_of
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, issuing, session
from tests.support.fake_server import Handler, responding
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


# The end of a session

NOT_ENDED = (500, "openai_session_not_ended", "OpenAI service error: Could not end session")


def test_request_to_end_a_session_equals_the_one_of_openais_sdk(fake_openai: FakeOpenAI) -> None:
    with openai.OpenAI(api_key=API_KEY, base_url=f"{fake_openai.url}/v1", max_retries=0) as sdk:
        sdk.beta.chatkit.sessions.cancel("cksess_1")
    sessions_api(fake_openai.url).end("cksess_1", USER)
    by_them, by_us = map(what_counts, fake_openai.received)
    assert by_us[:2] == by_them[:2] == ("POST", "/v1/chatkit/sessions/cksess_1/cancel")
    for name in ("authorization", "openai-beta"):
        assert by_us[3][name] == by_them[3][name]
    assert by_us[2] == b""


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (responding(200, session(status="cancelled")), None),
        (failing(404, "not_found"), None),
        (failing(400, "invalid_request_error"), None),
        (failing(409, "conflict"), None),
        (failing(410, "gone"), None),
        (failing(401, "invalid_api_key"), (401, "openai_authentication_failed", "OpenAI authentication failed")),
        (failing(403, "forbidden"), NOT_ENDED),
        (responding(302, Location="http://x.test"), NOT_ENDED),
        (failing(429, "rate_limit"), (429, "openai_rate_limited", "Rate limited by OpenAI. Please try again in a moment.")),
        (failing(500, "server_error"), (503, "openai_unavailable", "OpenAI service temporarily unavailable")),
        (Handler.hang_up, (503, "openai_unavailable", "OpenAI service temporarily unavailable")),
    ],
    ids=["200", "404", "400", "409", "410", "401", "403", "302", "429", "500", "connection closed"],
)
def test_responses_to_the_end_of_a_session(client: FlaskClient, fake_openai: FakeOpenAI, behaviour: Any, expected: Any) -> None:
    session_id = create_session(client)
    fake_openai.behaviour = behaviour
    response = client.delete(f"{ENDPOINT}/{session_id}")
    if expected is None:
        assert response.status_code == 200
    else:
        assert error_of(response) == expected
    assert WORKFLOW_ID not in response.text
    assert API_KEY not in response.text


def test_session_is_not_ended_without_an_api_key(make_app: MakeApp) -> None:
    client = make_app().test_client()
    session_id = create_session(client)
    other = make_app(OPENAI_API_KEY="").test_client()
    other._cookies = client._cookies
    assert error_of(other.delete(f"{ENDPOINT}/{session_id}"))[:2] == (500, "openai_api_key_missing")
