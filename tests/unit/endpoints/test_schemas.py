"""Each invalid body gets the error envelope with 400, and no session is issued."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from chatkit.endpoints.schemas import read_session_request
from tests.support.applications import MakeApp
from tests.support.bodies import JSON, PASSED, outcome, relaxed
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import FakeOpenAI

VALID = "6f1b3c1e-6a0f-4f43-9d53-0a1b2c3d4e5f"


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


anything_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.just("user_id"), inner, max_size=4),
    max_leaves=12,
)


@relaxed
@given(value=anything_json)
def test_any_json(one_client: FlaskClient, value: Any) -> None:
    expected = PASSED if value == {} and isinstance(value, dict) else "invalid_request_body"
    assert outcome(one_client, json.dumps(value).encode()) == expected


@given(user_id=st.uuids())
def test_uuid_is_read(user_id: Any) -> None:
    assert read_session_request(json.dumps({"user_id": str(user_id)}).encode()) == {"user_id": str(user_id)}


def test_refused_requests_do_not_reach_openai(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app().test_client()
    for body in MALFORMED.values():
        assert client.post(ENDPOINT, data=body, content_type=JSON).status_code == 400
    assert fake_openai.received == []


def test_validation_error_is_chained() -> None:
    with pytest.raises(ValueError, match="does not fit") as caught:
        read_session_request(b'{"user_id": 1}')
    assert isinstance(caught.value.__cause__, ValidationError)
