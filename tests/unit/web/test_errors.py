"""Errors become the contract's envelope, also those of Flask and of bugs."""

from __future__ import annotations

from typing import NoReturn

import pytest
from flask.testing import FlaskClient

from chatkit.web import errors
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


def test_host_name_is_blamed_only_if_it_is_the_reason(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    client = make_app(CHATKIT_ENV="development").test_client()
    assert client.get("/nothing").status_code == 404
    assert "Host header" not in caplog.text
    assert client.get("/", base_url="http://elsewhere.example").status_code == 400
    assert "the Host header is not localhost" in caplog.text


def fail(how: str) -> NoReturn:
    """Raise an error of the contract."""
    if how == "plainly":
        raise errors.ServiceBusy("x")
    try:
        raise KeyError("private")
    except KeyError as error:
        if how == "from":
            raise errors.ServiceBusy("x") from error
        if how == "from another":
            raise errors.ServiceBusy("x") from ValueError("private")
        if how == "from none":
            raise errors.ServiceBusy("x") from None
        raise errors.ServiceBusy("x")  # noqa: B904  that is what is tested


@pytest.mark.parametrize(
    ("how", "logged"),
    [
        ("plainly", "x"),
        ("from", "x (KeyError)"),
        ("from another", "x (ValueError)"),
        ("from none", "x"),
        ("while handling another", "x (KeyError)"),
    ],
)
def test_cause_is_logged_without_its_text(make_app: MakeApp, caplog: pytest.LogCaptureFixture, how: str, logged: str) -> None:
    app = make_app()
    app.add_url_rule("/fails", view_func=lambda: fail(how))
    assert app.test_client().get("/fails").status_code == 503
    assert [line.partition(": ")[2] for line in caplog.messages if "service_busy" in line] == [logged]
    assert "private" not in caplog.text


def test_unhandled_exception(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, user: object) -> None:
        raise ZeroDivisionError("something internal")

    monkeypatch.setattr("chatkit.backends.hosted.sessions_api.SessionsApi.issue", broken)
    response = make_app().test_client().post(ENDPOINT, headers={"Origin": "http://localhost:3000"})
    assert error_of(response) == (500, "internal_server_error", "Internal server error")
    assert "internal" not in response.text.replace("Internal server error", "").replace("internal_server_error", "")
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
