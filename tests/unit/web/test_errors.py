"""Errors become the contract's envelope, also those of Flask and of bugs."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT, error_of


def test_unknown_path(client: FlaskClient) -> None:
    assert error_of(client.get("/api/chatkit/nothing")) == (404, "not_found", "Not found")
    assert error_of(client.post(ENDPOINT + "/")) == (404, "not_found", "Not found")
    assert error_of(client.post("//api/chatkit/sessions")) == (404, "not_found", "Not found")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_wrong_method(client: FlaskClient, method: str) -> None:
    response = client.open(ENDPOINT, method=method)
    assert error_of(response) == (405, "method_not_allowed", "Method not allowed")
    assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


def test_unhandled_exception(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, user: object) -> None:
        raise ZeroDivisionError("something internal")

    monkeypatch.setattr("chatkit.backends.hosted.sessions_api.SessionsApi.issue", broken)
    response = make_app().test_client().post(ENDPOINT, headers={"Origin": "http://localhost:3000"})
    assert error_of(response) == (500, "internal_server_error", "Internal server error")
    assert "internal" not in response.text.replace("Internal server error", "").replace("internal_server_error", "")
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
