"""Every invalid body gets the error envelope with 400, 413 or 415, never a 500, and no session is issued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from chatkit.web.errors import ErrorSchema
from chatkit.web.schemas import read_session_request
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import FakeOpenAI

JSON = "application/json"
VALID = "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f"


@pytest.fixture(scope="module")
def one_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A client of an application without an API key, whose error shows that a request has passed all checks."""
    from chatkit import create_app
    from chatkit.settings import Settings

    app = create_app(Settings.load({"SECRET_KEY": "a-key-of-the-tests-and-nobody-else", "RATE_LIMIT": "1000000"}))
    with app.test_client(use_cookies=False) as client:
        yield client


PASSED = "openai_api_key_missing"


def outcome(client: FlaskClient, body: bytes, content_type: str | None = JSON) -> str:
    response = client.post(ENDPOINT, data=body, content_type=content_type)
    envelope = response.get_json()
    assert ErrorSchema().validate({name: envelope[name] for name in ("message", "code")}) == {}
    assert envelope["status"] == "error"
    if envelope["code"] != PASSED:
        assert response.status_code in (400, 403, 413, 415)
    code: str = envelope["code"]
    return code


MALFORMED: dict[str, bytes] = {
    "truncated": b'{"user_id": "6f1b',
    "single double quote": b'"',
    "trailing comma": b'{"user_id": "x",}',
    "two values": b"{} {}",
    "single quotes": b"{'user_id': 'x'}",
    "comment": b"{} // nothing",
    "array": b"[]",
    "array of objects": b"[{}]",
    "string": b'"text"',
    "number": b"1",
    "huge number": b"9" * 10_000,
    "exponent": b"1e999999",
    "true": b"true",
    "null": b"null",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "NaN inside": b'{"user_id": NaN}',
    "deeply nested arrays": b"[" * 16_000,
    "deeply nested and closed": b"[" * 8_000 + b"]" * 8_000,
    "deeply nested objects": b'{"a":' * 2_500 + b"1" + b"}" * 2_500,
    "duplicate name": b'{"user_id": "%b", "user_id": "%b"}' % (VALID.encode(), VALID.encode()),
    "nested duplicate name": b'{"user_id": {"a": 1, "a": 2}}',
    "unknown member": b'{"workflow_id": "wf_mine"}',
    "known and unknown": b'{"user_id": "%b", "admin": true}' % VALID.encode(),
    "prototype": b'{"__proto__": {"user_id": "x"}}',
    "UTF-16": '{"user_id": "x"}'.encode("utf-16"),
    "UTF-32": "{}".encode("utf-32"),
    "byte order mark": "{}".encode("utf-8-sig"),
    "not UTF-8": b'{"user_id": "\xe4"}',
    "surrogates": b'{"user_id": "\\ud800"}',
    "zero bytes": b"\x00\x00\x00",
    "zero in a string": b'{"user_id": "\x00"}',
    "form": b"user_id=x",
    "xml": b"<user_id/>",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(one_client: FlaskClient, case: str) -> None:
    assert outcome(one_client, MALFORMED[case]) == "invalid_request_body"


USER_IDS: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 10**400, "", " ", "x", VALID[:-1], VALID + "0", f" {VALID}", f"{VALID}\n", f"{{{VALID}}}",
    f"urn:uuid:{VALID}", VALID.replace("-", ""), VALID.replace("6", "६"), "g" + VALID[1:], "anonymous:" + VALID, [], [VALID],
    {}, {"$ne": None}, "' OR 1=1 --", "\u202e" + VALID, "x" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("user_id", USER_IDS, ids=lambda value: repr(value)[:30])
def test_user_id_of_every_type(one_client: FlaskClient, user_id: Any) -> None:
    assert outcome(one_client, json.dumps({"user_id": user_id}).encode()) == "invalid_request_body"


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        (None, "unsupported_media_type"),
        ("", "unsupported_media_type"),
        ("text/plain", "unsupported_media_type"),
        ("multipart/form-data; boundary=x", "unsupported_media_type"),
        ("application/x-www-form-urlencoded", "unsupported_media_type"),
        ("application/json; charset=latin-1", "unsupported_media_type"),
        ("application/json; charset=utf-16", "unsupported_media_type"),
        ("application/json; charset=", PASSED),
        ("application/json, text/plain", "unsupported_media_type"),
        ("json", "unsupported_media_type"),
        ("application/" + "j" * 5000, "unsupported_media_type"),
        ("application/json;;;", PASSED),
        ('application/json; charset="UTF-8"', PASSED),
        ("APPLICATION/JSON", PASSED),
    ],
)
def test_content_types(one_client: FlaskClient, content_type: str | None, code: str) -> None:
    assert outcome(one_client, b"{}", content_type) == code


@pytest.mark.parametrize("size", [16 * 1024 + 1, 10_000_000])
def test_oversized_bodies(one_client: FlaskClient, size: int) -> None:
    assert outcome(one_client, b" " * size) == "request_entity_too_large"
    assert outcome(one_client, b"[" * size) == "request_entity_too_large"


anything_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.just("user_id"), inner, max_size=4),
    max_leaves=12,
)
relaxed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(body=st.binary(max_size=200), content_type=st.sampled_from([JSON, None, "text/plain", "application/json; charset=x"]))
def test_any_bytes(one_client: FlaskClient, body: bytes, content_type: str | None) -> None:
    assert (outcome(one_client, body, content_type) == PASSED) <= (body.strip() in (b"", b"{}"))


@relaxed
@given(value=anything_json)
def test_any_json(one_client: FlaskClient, value: Any) -> None:
    expected = PASSED if value == {} and isinstance(value, dict) else "invalid_request_body"
    assert outcome(one_client, json.dumps(value).encode()) == expected


def test_body_that_ends_early(one_client: FlaskClient) -> None:
    shorter = {"CONTENT_LENGTH": "3", "wsgi.input_terminated": True}
    response = one_client.post(ENDPOINT, data=b"{}", content_type=JSON, environ_overrides=shorter)
    assert response.get_json()["code"] == "invalid_request_body"


@relaxed
@given(content_type=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60))
def test_any_content_type(one_client: FlaskClient, content_type: str) -> None:
    assert outcome(one_client, b"{}", content_type) in (PASSED, "unsupported_media_type")


@relaxed
@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60))
@pytest.mark.parametrize(
    "header", ["X-Request-ID", "Origin", "Cookie", "Host", "Authorization", "X-Forwarded-Proto", "X-Forwarded-Host"]
)
def test_any_header(one_client: FlaskClient, header: str, value: str) -> None:
    response = one_client.post(ENDPOINT, headers={header: value})
    assert response.get_json()["code"] in (PASSED, "origin_not_allowed", "bad_request", "not_found", "invalid_token")


@given(user_id=st.uuids())
def test_uuid_is_read(user_id: Any) -> None:
    assert read_session_request(json.dumps({"user_id": str(user_id)}).encode()) == {"user_id": str(user_id)}


def test_refused_requests_reach_no_upstream(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app().test_client()
    for body in MALFORMED.values():
        assert client.post(ENDPOINT, data=body, content_type=JSON).status_code == 400
    assert fake_openai.received == []


def test_validation_error_is_chained() -> None:
    with pytest.raises(ValueError, match="does not fit") as caught:
        read_session_request(b'{"user_id": 1}')
    assert isinstance(caught.value.__cause__, ValidationError)
