"""Ending a session, on both backends: only for its owner, and idempotent."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.chat import Caller, texts, user_input
from tests.support.endpoint import ENDPOINT, USER, create_session, error_of
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, session
from tests.support.fake_server import Handler, responding
from tests.support.hosted import COMPLETE, sessions_api, what_counts
from tests.support.identity_provider import SECRET, shared
from tests.support.service import Service

NOT_ENDED = (500, "openai_session_not_ended", "OpenAI service error: Could not end session")
NOT_FOUND = (404, "not_found", "Not found")


def bearer(subject: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {shared(sub=subject)}"}


def cancelled(fake_openai: FakeOpenAI) -> list[str]:
    return [received.path for received in fake_openai.received if received.path.endswith("/cancel")]


@pytest.fixture(params=["hosted", "selfhosted"])
def app(request: pytest.FixtureRequest, make_app: MakeApp) -> Any:
    return make_app(CHATKIT_BACKEND=request.param, AUTH_JWT_SECRET=SECRET)


@pytest.mark.parametrize("headers", [{}, bearer("ada")], ids=["visitor", "signed in"])
def test_ending_is_idempotent(app: Any, headers: dict[str, str]) -> None:
    client = app.test_client()
    session_id = create_session(client, **headers)
    for _ in range(3):
        response = client.delete(f"{ENDPOINT}/{session_id}", headers=headers)
        assert response.status_code == 200
        assert response.get_json() == {"status": "success", "data": {"session_id": session_id, "ended": True}}
        assert response.headers["Cache-Control"] == "no-store"


def test_sessions_of_others_are_not_found(app: Any, fake_openai: FakeOpenAI) -> None:
    visitor, other = app.test_client(), app.test_client()
    of_visitor, of_ada, of_other = create_session(visitor), create_session(visitor, **bearer("ada")), create_session(other)
    never_issued = of_ada[:-6] + "AAAAAA"
    attempts: list[tuple[Any, str, dict[str, str]]] = [
        (other, of_visitor, {}),
        (other, of_ada, {}),
        (other, of_ada, bearer("bob")),
        (app.test_client(), of_visitor, {}),
        (visitor, of_ada, {}),  # the same browser, signed out
        (visitor, of_visitor, bearer("ada")),  # the same browser, signed in
        (visitor, of_ada, bearer("bob")),  # the same browser, another user
        (visitor, of_other, bearer("ada")),
        (visitor, never_issued, {}),
        (visitor, never_issued, bearer("ada")),
    ]
    bodies = set()
    for client, session_id, headers in attempts:
        response = client.delete(f"{ENDPOINT}/{session_id}", headers=headers)
        assert error_of(response) == NOT_FOUND
        bodies.add(response.text)
    assert len(bodies) == 1
    assert cancelled(fake_openai) == []
    assert visitor.delete(f"{ENDPOINT}/{of_visitor}").status_code == 200
    assert visitor.delete(f"{ENDPOINT}/{of_ada}", headers=bearer("ada")).status_code == 200


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer e30.e30.x"}, {"Authorization": "Bearer"}])
def test_invalid_token(app: Any, headers: dict[str, str]) -> None:
    client = app.test_client()
    session_id = create_session(client)
    assert error_of(client.delete(f"{ENDPOINT}/{session_id}", headers=headers))[:2] == (401, "invalid_token")


@pytest.mark.parametrize(
    "session_id",
    ["..", "%2e%2e%2fthreads", "a%00b", "a%0d%0aX-Forged: 1", "x" * 201, "ses_ü", "' OR 1=1 --", "a;b", "a%3Fb", "*"],
)
def test_invalid_session_id(app: Any, fake_openai: FakeOpenAI, session_id: str) -> None:
    client = app.test_client()
    create_session(client)
    calls = len(fake_openai.received)
    assert error_of(client.delete(f"{ENDPOINT}/{session_id}")) == NOT_FOUND
    assert len(fake_openai.received) == calls


def test_unlisted_origin_is_refused(app: Any) -> None:
    client = app.test_client()
    session_id = create_session(client)
    for origin in ("https://evil.test", "null", "http://localhost:3000.evil.test"):
        response = client.delete(f"{ENDPOINT}/{session_id}", headers={"Origin": origin})
        assert error_of(response) == (403, "origin_not_allowed", "Origin not allowed")
    response = client.delete(f"{ENDPOINT}/{session_id}", headers={"Origin": "http://localhost:3000"})
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert response.status_code == 200


def test_other_methods(app: Any) -> None:
    for method in ("GET", "POST", "PUT", "PATCH"):
        response = app.test_client().open(f"{ENDPOINT}/ses_1", method=method)
        assert error_of(response)[:2] == (405, "method_not_allowed")


# Hosted


def test_request_equals_the_one_of_openais_sdk(fake_openai: FakeOpenAI) -> None:
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
        (failing(401, "invalid_api_key"), (401, "openai_authentication_failed", "OpenAI authentication failed")),
        (failing(403, "forbidden"), NOT_ENDED),
        (responding(302, Location="http://x.test"), NOT_ENDED),
        (failing(429, "rate_limit"), (429, "openai_rate_limited", "Rate limited by OpenAI. Please try again in a moment.")),
        (failing(500, "server_error"), (503, "openai_unavailable", "OpenAI service temporarily unavailable")),
        (Handler.hang_up, (503, "openai_unavailable", "OpenAI service temporarily unavailable")),
    ],
    ids=["200", "404", "400", "409", "401", "403", "302", "429", "500", "connection closed"],
)
def test_responses_of_openai(client: FlaskClient, fake_openai: FakeOpenAI, behaviour: Any, expected: Any) -> None:
    session_id = create_session(client)
    fake_openai.behaviour = behaviour
    response = client.delete(f"{ENDPOINT}/{session_id}")
    if expected is None:
        assert response.status_code == 200
    else:
        assert error_of(response) == expected
    assert WORKFLOW_ID not in response.text
    assert API_KEY not in response.text


def test_missing_api_key(make_app: MakeApp) -> None:
    client = make_app().test_client()
    session_id = create_session(client)
    other = make_app(OPENAI_API_KEY="").test_client()
    other._cookies = client._cookies
    assert error_of(other.delete(f"{ENDPOINT}/{session_id}"))[:2] == (500, "openai_api_key_missing")


def test_ten_newest_sessions_of_a_browser_are_known_to_every_process(fake_openai: FakeOpenAI) -> None:
    variables = {**COMPLETE, "CHATKIT_API_BASE": fake_openai.url}
    browser = requests.Session()
    with Service(**variables) as first, Service(**variables) as second:
        ids = [browser.post(f"{first.url}{ENDPOINT}", timeout=10).json()["data"]["session_id"] for _ in range(12)]
        statuses = [browser.delete(f"{second.url}{ENDPOINT}/{session_id}", timeout=10).status_code for session_id in ids]
    assert statuses == [404] * 2 + [200] * 10
    assert cancelled(fake_openai) == [f"/v1/chatkit/sessions/{session_id}/cancel" for session_id in ids[2:]]
    assert len(str(browser.cookies.get_dict())) < 1000


@pytest.mark.parametrize("part", range(3))
def test_edited_cookie_is_no_proof_of_ownership(
    client: FlaskClient, make_app: MakeApp, fake_openai: FakeOpenAI, part: int
) -> None:
    """Each part of one visitor's cookie in place of that of another's."""
    mine, theirs = make_app().test_client(), make_app().test_client()
    session_id = create_session(theirs)
    create_session(mine)

    def value(client: FlaskClient) -> list[str]:
        cookie = client.get_cookie("chatkit_visitor")
        assert cookie
        return cookie.value.split(".")

    swapped = value(mine)
    swapped[part] = value(theirs)[part]
    mine.set_cookie("chatkit_visitor", ".".join(swapped))
    if swapped != value(theirs):
        assert error_of(mine.delete(f"{ENDPOINT}/{session_id}")) == NOT_FOUND
    assert cancelled(fake_openai) == []


# Self-hosted


def test_secret_of_an_ended_session_is_refused(tmp_path: Path) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db", WEB_CONCURRENCY="2") as service:
        caller = Caller(service.url)
        other_session = caller.secret
        issued = caller.http.post(f"{service.url}{ENDPOINT}", timeout=10).json()["data"]
        caller.secret = issued["client_secret"]
        thread_id, _ = caller.create("progress")

        def logout() -> requests.Response:
            return caller.http.delete(f"{service.url}{ENDPOINT}/{issued['session_id']}", timeout=10)

        timer = threading.Timer(0.3, logout)
        stream = caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Hello"))
        timer.start()
        assert texts(list(stream)), "a turn that has started is finished"
        timer.join()

        refused = caller.post("threads.list")
        assert (refused.status_code, refused.json()["code"]) == (401, "client_secret_expired")
        assert logout().status_code == 200
        caller.secret = other_session
        assert caller.post("threads.list").status_code == 200, "other sessions of the user stay valid"
    assert f'"session_id": "{issued["session_id"]}"' in service.log
