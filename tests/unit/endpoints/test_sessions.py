"""The contract's errors: status, code, message and headers. Those of the fake_openai are in test_sessions_api_faults.py."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import FakeOpenAI, issuing
from tests.support.identity_provider import SECRET, shared


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


def test_who_signs_in_is_no_visitor_any_more(make_app: MakeApp) -> None:
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


def test_unknown_path(client: FlaskClient) -> None:
    assert error_of(client.get("/api/chatkit/nothing")) == (404, "not_found", "Not found")
    assert error_of(client.post(ENDPOINT + "/")) == (404, "not_found", "Not found")
    assert error_of(client.post("//api/chatkit/sessions")) == (404, "not_found", "Not found")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_wrong_method(client: FlaskClient, method: str) -> None:
    response = client.open(ENDPOINT, method=method)
    assert error_of(response) == (405, "method_not_allowed", "Method not allowed")
    assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


def test_body_too_large(client: FlaskClient) -> None:
    largest = b"{" + b" " * (16 * 1024 - 2) + b"}"
    assert client.post(ENDPOINT, data=largest, content_type="application/json").status_code == 200
    response = client.post(ENDPOINT, data=largest + b" ", content_type="application/json")
    assert error_of(response) == (413, "request_entity_too_large", "Request entity too large")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_unsupported_media_type(client: FlaskClient, content_type: str | None) -> None:
    response = client.post(ENDPOINT, data=b"{}", content_type=content_type)
    assert error_of(response) == (415, "unsupported_media_type", "Content-Type must be application/json")


def test_unhandled_exception(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, user: object) -> None:
        raise ZeroDivisionError("something internal")

    monkeypatch.setattr("chatkit.backends.hosted.sessions_api.SessionsApi.issue", broken)
    response = make_app().test_client().post(ENDPOINT, headers={"Origin": "http://localhost:3000"})
    assert error_of(response) == (500, "internal_server_error", "Internal server error")
    assert "internal" not in response.text.replace("Internal server error", "").replace("internal_server_error", "")
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


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
