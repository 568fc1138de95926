"""Every body, content type and header that can't be read gets the error envelope, never a 500."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bodies import JSON, PASSED, outcome, relaxed
from tests.support.endpoint import ENDPOINT


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


@relaxed
@given(body=st.binary(max_size=200), content_type=st.sampled_from([JSON, None, "text/plain", "application/json; charset=x"]))
def test_any_bytes(one_client: FlaskClient, body: bytes, content_type: str | None) -> None:
    assert (outcome(one_client, body, content_type) == PASSED) <= (body.strip() in (b"", b"{}"))


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
@pytest.mark.slow
def test_any_header(one_client: FlaskClient, header: str, value: str) -> None:
    response = one_client.post(ENDPOINT, headers={header: value})
    assert response.get_json()["code"] in (PASSED, "origin_not_allowed", "bad_request", "not_found", "invalid_token")
