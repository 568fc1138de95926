"""Whether the process lives, and whether a session could be issued now."""

from __future__ import annotations

import pytest

from tests.support.applications import MakeApp
from tests.support.endpoint import error_of


@pytest.mark.parametrize("backend", ["hosted", "selfhosted"])
def test_ready(make_app: MakeApp, backend: str) -> None:
    response = make_app(CHATKIT_BACKEND=backend).test_client().get("/readyz")
    assert (response.status_code, response.get_json()) == (200, {"status": "success", "data": {"ready": True}})


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"OPENAI_API_KEY": ""}, "OPENAI_API_KEY"),
        ({"CHATKIT_WORKFLOW_ID": ""}, "CHATKIT_WORKFLOW_ID"),
        ({"OPENAI_API_KEY": "", "CHATKIT_WORKFLOW_ID": ""}, "OPENAI_API_KEY, CHATKIT_WORKFLOW_ID"),
    ],
)
def test_not_ready(make_app: MakeApp, caplog: pytest.LogCaptureFixture, variables: dict[str, str], missing: str) -> None:
    client = make_app(**variables).test_client()
    assert f"sessions can't be issued until these are set: {missing}" in caplog.messages
    response = client.get("/readyz")
    assert error_of(response) == (503, "not_ready", f"Not ready. Missing: {missing}")
    assert response.headers["Retry-After"] == "5"
    assert client.get("/healthz").get_json() == {"status": "success", "data": {"alive": True}}
