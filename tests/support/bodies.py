"""Request bodies of the sessions endpoint, of which each outcome is one of the contract's codes."""

from __future__ import annotations

from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings

from chatkit.web.errors import ErrorSchema
from tests.support.endpoint import ENDPOINT

JSON = "application/json"


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


relaxed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
