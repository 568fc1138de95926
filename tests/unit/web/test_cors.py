"""CORS: listed origins get the headers, also with errors; others are refused."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import FakeOpenAI, failing

LISTED = "http://localhost:3000"


def test_listed_origin(client: FlaskClient) -> None:
    response = client.post(ENDPOINT, headers={"Origin": LISTED})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
    assert exposed == [
        "ChatKit-Run",
        "RateLimit-Limit",
        "RateLimit-Remaining",
        "RateLimit-Reset",
        "Retry-After",
        "X-Request-ID",
    ]
    assert "Origin" in response.vary


def test_preflight(client: FlaskClient, fake_openai: FakeOpenAI) -> None:
    requested = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-request-id",
    }
    response = client.options(ENDPOINT, headers={"Origin": LISTED, **requested})
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert response.headers["Access-Control-Allow-Methods"] == "DELETE, POST"
    assert response.headers["Access-Control-Allow-Headers"] == "authorization, content-type, x-request-id"
    assert response.headers["Access-Control-Max-Age"] == "600"
    assert "Set-Cookie" not in response.headers
    assert fake_openai.received == []


def test_preflight_for_the_headers_of_chatkits_component(client: FlaskClient) -> None:
    requested = "accept, authorization, chatkit-device-id, chatkit-frame-instance-id, content-type, openai-sentinel-token"
    headers = {"Origin": LISTED, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": requested}
    assert client.options(ENDPOINT, headers=headers).headers["Access-Control-Allow-Headers"] == requested


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.test",
        "http://localhost:3000.evil.test",
        "http://localhost:30000",
        "https://localhost",
        "https://localhost:3000",
        "http://LOCALHOST:3000",
        "http://localhost:3000/",
        "http://localhost:3000, http://localhost:3000",
        "http://127.0.0.1:3000",
        "http://localhost.:3000",
        "null",
        "*",
        "",
        "file://",
    ],
)
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_other_origins_are_refused_before_any_work(
    client: FlaskClient, fake_openai: FakeOpenAI, origin: str, method: str
) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    response = client.open(ENDPOINT, method=method, headers=headers)
    assert response.status_code == 403
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
    assert "Set-Cookie" not in response.headers
    assert fake_openai.received == []


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/static/host.js"])
def test_other_origins_may_ask_beside_the_api(client: FlaskClient, path: str) -> None:
    """For example a page that monitors the service. It can't read the response."""
    response = client.get(path, headers={"Origin": "https://elsewhere.example"})
    assert response.status_code == 200
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_request_without_an_origin(client: FlaskClient) -> None:
    response = client.post(ENDPOINT)
    assert response.status_code == 200
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("hops", ["0", "1"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost"},
        {"Origin": "https://chat.example.com", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example.com"},
        {"Origin": "https://chat.example.com", "X-Forwarded-Proto": "https", "Host": "chat.example.com"},
        {"Origin": "http://chat.example.com", "Host": "chat.example.com"},
    ],
)
def test_host_header_does_not_allow_an_origin(make_app: MakeApp, headers: dict[str, str], hops: str) -> None:
    """tests/service/test_own_origin.py covers the service's own origin."""
    app = make_app(CHATKIT_ALLOWED_ORIGINS="https://app.example.org", PROXY_HOPS=hops)
    assert app.test_client().post(ENDPOINT, headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", ENDPOINT, b"[", 400),
        ("POST", ENDPOINT, b"x" * 20_000, 413),
        ("GET", ENDPOINT, b"", 405),
        ("POST", "/api/nothing", b"", 404),
        ("POST", ENDPOINT, b"", 500),
    ],
)
def test_errors_have_cors_headers(
    client: FlaskClient, fake_openai: FakeOpenAI, method: str, path: str, body: bytes, status: int
) -> None:
    fake_openai.behaviour = failing(404, "not_found")
    response = client.open(path, method=method, data=body, content_type="application/json", headers={"Origin": LISTED})
    assert response.status_code == status
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]


def test_pattern_for_preview_deployments(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_ALLOWED_ORIGINS="https://shop-*-team.vercel.app").test_client()
    preview = "https://shop-git-main-team.vercel.app"
    response = client.post(ENDPOINT, headers={"Origin": preview})
    assert response.headers["Access-Control-Allow-Origin"] == preview
    assert client.post(ENDPOINT, headers={"Origin": "https://shop-x-team.vercel.app.evil.test"}).status_code == 403


def test_only_localhost_names_are_served_in_development(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    client = make_app(CHATKIT_ENV="development").test_client()
    for host in ("localhost:8000", "127.0.0.1:8000"):
        assert client.post(ENDPOINT, headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    for more in ({}, {"X-Forwarded-Proto": "https"}):
        rebound = client.post(ENDPOINT, headers={"Host": "evil.test", "Origin": "http://evil.test", **more})
        assert rebound.get_json()["code"] == "origin_not_allowed"
        for origin in ({}, {"Origin": LISTED}):
            rebound = client.post(ENDPOINT, headers={"Host": "evil.test", **origin, **more}, base_url="https://evil.test")
            assert (rebound.status_code, rebound.get_json()["code"]) == (400, "bad_request")
            assert caplog.messages.count("the Host header is not localhost, the only host with CHATKIT_ENV=development") == 1
            caplog.clear()
