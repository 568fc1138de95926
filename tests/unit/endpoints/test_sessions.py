"""The sessions endpoint: what it answers, and its errors. Those that OpenAI causes are in test_sessions_api_faults.py."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, create_session, error_of
from tests.support.fake_openai import FakeOpenAI, cancelled, issuing
from tests.support.identity_provider import SECRET, shared
from tests.support.sign_in import issue


@pytest.mark.parametrize("backend", ["hosted", "selfhosted"])
def test_success_envelope(make_app: MakeApp, backend: str) -> None:
    client = make_app(CHATKIT_BACKEND=backend).test_client()
    before = datetime.now(UTC)
    response = client.post(ENDPOINT)
    body = response.get_json()
    assert response.status_code == 200
    assert list(body) == ["status", "data"]
    assert body["status"] == "success"
    data = body["data"]
    assert list(data) == ["client_secret", "session_id", "expires_at", "expires_in"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", data["expires_at"])
    assert 595 <= data["expires_in"] <= 600
    assert 595 <= (datetime.fromisoformat(data["expires_at"]) - before).total_seconds() <= 601
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"", "text/plain"),
        (b"{}", "application/json"),
        (b" {} ", "Application/JSON; charset=UTF-8"),
    ],
)
def test_empty_request(client: FlaskClient, body: bytes, content_type: str | None) -> None:
    assert client.post(ENDPOINT, data=body, content_type=content_type).status_code == 200


def test_missing_api_key(make_app: MakeApp) -> None:
    response = make_app(OPENAI_API_KEY="").test_client().post(ENDPOINT)
    assert error_of(response) == (500, "openai_api_key_missing", "OpenAI API key not configured")


def test_missing_workflow(make_app: MakeApp) -> None:
    response = make_app(CHATKIT_WORKFLOW_ID="").test_client().post(ENDPOINT)
    assert error_of(response) == (500, "chatkit_workflow_missing", "ChatKit workflow not configured")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"user_id": 1}', b'{"other": 1}', b"\xff"])
def test_invalid_body(client: FlaskClient, body: bytes) -> None:
    response = client.post(ENDPOINT, data=body, content_type="application/json")
    assert error_of(response) == (400, "invalid_request_body", "Invalid request body")


@pytest.mark.parametrize(("length", "status"), [(200, 200), (201, 404)])
def test_length_of_a_session_id(client: FlaskClient, fake_openai: FakeOpenAI, length: int, status: int) -> None:
    session_id = "s" * length
    fake_openai.behaviour = issuing(id=session_id)
    client.post(ENDPOINT)
    assert client.delete(f"{ENDPOINT}/{session_id}").status_code == status
    assert len(fake_openai.received) == (2 if status == 200 else 1)


def test_user_id_of_another_user(client: FlaskClient) -> None:
    response = client.post(ENDPOINT, json={"user_id": "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f"})
    assert error_of(response) == (403, "user_mismatch", "user_id is not the user who is asking")


def test_own_user_id(client: FlaskClient) -> None:
    client.post(ENDPOINT)
    with client.session_transaction() as cookie:
        visitor = cookie["visitor"]
    assert client.post(ENDPOINT, json={"user_id": visitor}).status_code == 200
    assert client.post(ENDPOINT, json={"user_id": visitor.upper()}).status_code == 200


def test_user_id_must_match_the_token(with_secret: FlaskClient, fake_openai: FakeOpenAI) -> None:
    me, other = "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f", "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e50"
    token = shared(sub=me.upper())
    assert issue(with_secret, token, json={"user_id": me}).status_code == 200
    refused = issue(with_secret, token, json={"user_id": other})
    assert error_of(refused) == (403, "user_mismatch", "user_id is not the user who is asking")
    assert len(fake_openai.received) == 1


def test_visitor_who_reloads_the_page_takes_nothing_over(make_app: MakeApp) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "AUTH_JWT_SECRET": SECRET, "AUTH_KEEP_CONVERSATIONS": "true"}
    client = make_app(**variables).test_client()
    first = client.post(ENDPOINT).get_json()["data"]["client_secret"]
    with client.session_transaction() as cookie:
        visitor = cookie["visitor"]
    client.post(ENDPOINT)
    with client.session_transaction() as cookie:
        assert cookie["visitor"] == visitor
    body = {"type": "threads.list", "params": {}}
    assert client.post("/api/chatkit", json=body, headers={"Authorization": f"Bearer {first}"}).status_code == 200


def test_visitor_is_forgotten_after_sign_in(make_app: MakeApp) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "AUTH_JWT_SECRET": SECRET, "AUTH_KEEP_CONVERSATIONS": "true"}
    client = make_app(**variables).test_client()
    client.post(ENDPOINT)
    client.post(ENDPOINT, headers={"Authorization": f"Bearer {shared()}"})
    with client.session_transaction() as cookie:
        assert "visitor" not in cookie


def test_signed_in_user_without_a_cookie_is_counted(make_app: MakeApp) -> None:
    client = make_app(AUTH_JWT_SECRET=SECRET, RATE_LIMIT="2,100").test_client(use_cookies=False)
    headers = {"Authorization": f"Bearer {shared()}"}
    assert [client.post(ENDPOINT, headers=headers).status_code for _ in range(3)] == [200, 200, 429]
    assert client.post(ENDPOINT).status_code == 200


def test_unlisted_origin(client: FlaskClient) -> None:
    response = client.post(ENDPOINT, headers={"Origin": "https://evil.test"})
    assert error_of(response) == (403, "origin_not_allowed", "Origin not allowed")


def test_body_too_large(client: FlaskClient) -> None:
    largest = b"{" + b" " * (16 * 1024 - 2) + b"}"
    assert client.post(ENDPOINT, data=largest, content_type="application/json").status_code == 200
    response = client.post(ENDPOINT, data=largest + b" ", content_type="application/json")
    assert error_of(response) == (413, "request_entity_too_large", "Request entity too large")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_unsupported_media_type(client: FlaskClient, content_type: str | None) -> None:
    response = client.post(ENDPOINT, data=b"{}", content_type=content_type)
    assert error_of(response) == (415, "unsupported_media_type", "Content-Type must be application/json")


# The end of a session: only for its owner, and idempotent

NOT_FOUND = (404, "not_found", "Not found")


def bearer(subject: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {shared(sub=subject)}"}


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
def test_end_with_an_invalid_token(app: Any, headers: dict[str, str]) -> None:
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


def test_end_from_an_unlisted_origin(app: Any) -> None:
    client = app.test_client()
    session_id = create_session(client)
    for origin in ("https://evil.test", "null", "http://localhost:3000.evil.test"):
        response = client.delete(f"{ENDPOINT}/{session_id}", headers={"Origin": origin})
        assert error_of(response) == (403, "origin_not_allowed", "Origin not allowed")
    response = client.delete(f"{ENDPOINT}/{session_id}", headers={"Origin": "http://localhost:3000"})
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert response.status_code == 200


def test_other_methods_of_a_session(app: Any) -> None:
    for method in ("GET", "POST", "PUT", "PATCH"):
        response = app.test_client().open(f"{ENDPOINT}/ses_1", method=method)
        assert error_of(response)[:2] == (405, "method_not_allowed")
