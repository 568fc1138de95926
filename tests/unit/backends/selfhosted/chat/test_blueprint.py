"""Who may send a chat request, and how large it may be, by its type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from chatkit.backends.selfhosted.sessions import SessionStore
from tests.support.applications import MakeApp
from tests.support.chat import user_input
from tests.support.endpoint import ENDPOINT

KIB = 1024


@pytest.fixture
def status(make_app: MakeApp) -> Any:
    """Sends a body, with spaces at its end up to a size, and gives the status of the answer."""
    client = make_app(CHATKIT_BACKEND="selfhosted", OPENAI_API_KEY="").test_client()
    secret = client.post(ENDPOINT).get_json()["data"]["client_secret"]

    def send(body: bytes, size: int = 0) -> int:
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        return client.post("/api/chatkit", data=body.ljust(size), headers=headers, buffered=True).status_code

    return send


def request(type_: str, **params: Any) -> bytes:
    return json.dumps({"type": type_, "params": params}).encode()


def dictation(size: int, **more: Any) -> bytes:
    """A body of this size with audio in it."""
    around = len(request("input.transcribe", audio_base64="", mime_type="audio/webm", **more))
    body = request("input.transcribe", audio_base64="A" * ((size - around) // 4 * 4), mime_type="audio/webm", **more)
    return body.ljust(size)


@pytest.mark.parametrize(("size", "expected"), [(64 * KIB, 200), (64 * KIB + 1, 413)])
@pytest.mark.parametrize("body", [request("threads.create", input=user_input("progress")), request("threads.list")])
def test_request_has_64_kib_at_most(status: Any, body: bytes, size: int, expected: int) -> None:
    assert status(body, size) == expected


@pytest.mark.parametrize(("size", "expected"), [(256 * KIB, 404), (256 * KIB + 1, 413)])
def test_client_tools_output_has_256_kib_at_most(status: Any, size: int, expected: int) -> None:
    assert status(request("threads.add_client_tool_output", thread_id="thr_none", result={}), size) == expected


NO_KEY = 500  # the request was read


@pytest.mark.parametrize(("size", "expected"), [(8 * KIB * KIB, NO_KEY), (8 * KIB * KIB + 1, 413)])
def test_dictation_has_8_mib_at_most(status: Any, size: int, expected: int) -> None:
    assert status(dictation(size)) == expected


@pytest.mark.parametrize(
    ("size", "commas", "expected"), [(256 * KIB, 38, NO_KEY), (256 * KIB + 1, 37, NO_KEY), (256 * KIB + 1, 38, 413)]
)
def test_long_dictation_that_is_more_than_audio_is_not_read(status: Any, size: int, commas: int, expected: int) -> None:
    """Beyond 256 KiB a body has 40 commas at most."""
    body = dictation(size, metadata={"note": "," * commas})
    assert body.count(b",") == commas + 3
    assert status(body) == expected


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "client_secret_missing"),
        ("", "client_secret_missing"),
        ("Bearer", "client_secret_missing"),
        ("Bearer  ", "client_secret_missing"),
        ("Basic {secret}", "client_secret_missing"),
        ("Basic Y3M6eA==", "client_secret_missing"),
        ("{secret}", "client_secret_missing"),
        ("Bearer cs_unknown", "client_secret_unknown"),
        ("Bearer ek_something", "client_secret_unknown"),
        ("Bearer {secret}", None),
        ("bearer  {secret} ", None),
    ],
)
def test_secret(selfhosted: FlaskClient, authorization: str | None, code: str | None) -> None:
    secret = selfhosted.post(ENDPOINT).get_json()["data"]["client_secret"]
    headers = {} if authorization is None else {"Authorization": authorization.format(secret=secret)}
    response = selfhosted.post("/api/chatkit", data=request("threads.list"), content_type="application/json", headers=headers)
    assert (response.status_code, response.get_json().get("code")) == (401 if code else 200, code)


def test_requests_of_an_address_are_counted_before_their_secret_is_looked_up(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_BACKEND="selfhosted", RATE_LIMIT="1").test_client()
    headers = {"Authorization": "Bearer cs_guessed"}
    statuses = [client.post("/api/chatkit", json={}, headers=headers).status_code for _ in range(101)]
    assert statuses == [401] * 100 + [429]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE chat_sessions SET expires_at = 1", "client_secret_expired"),
        ("DELETE FROM chat_sessions", "client_secret_unknown"),
    ],
)
def test_session_that_ends_before_its_first_message_is_stored(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, change: str, code: str
) -> None:
    """The page requests another one and repeats the message, which it does for no other error."""
    client = make_app(CHATKIT_BACKEND="selfhosted", OPENAI_API_KEY="").test_client()
    secret = client.post(ENDPOINT).get_json()["data"]["client_secret"]
    find = SessionStore.find

    def find_and_change(store: SessionStore, client_secret: str) -> Any:
        found = find(store, client_secret)
        with store.engine.begin() as connection:
            connection.execute(text(change))
        return found

    monkeypatch.setattr(SessionStore, "find", find_and_change)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    response = client.post("/api/chatkit", data=request("threads.create", input=user_input("Hi")), headers=headers)
    assert (response.status_code, response.get_json()["code"]) == (401, code)
