"""The host page's own origin is taken from the platform or the settings, never from a request."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
import requests

from chatkit.settings import Settings
from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT
from tests.support.leaks import Recorder
from tests.support.service import SECRET_KEY, Service

PLATFORMS = {
    "Render": ("RENDER_EXTERNAL_HOSTNAME", "shop.onrender.com", "https://shop.onrender.com"),
    "Railway": ("RAILWAY_PUBLIC_DOMAIN", "shop.up.railway.app", "https://shop.up.railway.app"),
    "Fly": ("FLY_APP_NAME", "shop", "https://shop.fly.dev"),
    "Heroku": ("HEROKU_APP_DEFAULT_DOMAIN_NAME", "shop-1234567890ab.herokuapp.com", "https://shop-1234567890ab.herokuapp.com"),
}


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path_factory.mktemp('db')}/chatkit.db"
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, WEB_CONCURRENCY="1") as running:
        yield running


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.7:8000", "intranet.example"])
def test_rebound_page_is_refused(production: Service, host: str) -> None:
    """DNS rebinding: the attacker's name resolves to the service's address, so Origin and Host agree."""
    response = production.create_session(headers={"Host": host, "Origin": f"http://{host}"})
    assert (response.status_code, response.json()["code"]) == (403, "origin_not_allowed")
    assert "Set-Cookie" not in response.headers


def test_rebound_page_with_proxy_headers_is_refused(production: Service) -> None:
    """To the browser it is same-origin, so it may set any header but Host and Origin."""
    forwarded = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-For": "10.0.0.1"}
    response = production.create_session(headers={"Host": "evil.example", "Origin": "http://evil.example", **forwarded})
    assert response.status_code == 403


def test_request_without_an_origin(production: Service) -> None:
    assert production.create_session(headers={"Host": "intranet.example"}).status_code == 200


@pytest.mark.parametrize("platform", PLATFORMS)
def test_origin_from_the_platforms_variable(make_app: MakeApp, platform: str) -> None:
    name, value, origin = PLATFORMS[platform]
    for listed in ("", "https://app.example.org"):
        client = make_app(**{name: value, "CHATKIT_ALLOWED_ORIGINS": listed}).test_client()
        assert client.post(ENDPOINT, headers={"Origin": origin}).status_code == 200
        for other in (origin.replace("https", "http"), f"{origin}:8443", f"{origin}.evil.test", "https://evil.onrender.com"):
            assert client.post(ENDPOINT, headers={"Origin": other}).status_code == 403


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_own_origin_without_the_host_page(make_app: MakeApp, platform: str) -> None:
    name, value, origin = PLATFORMS[platform]
    client = make_app(**{name: value, "CHATKIT_HOST_PAGE": "false"}).test_client()
    headers = {"Origin": origin, "Host": origin.removeprefix("https://"), "X-Forwarded-Proto": "https"}
    assert client.post(ENDPOINT, headers=headers).status_code == 403


@pytest.mark.parametrize("value", ["", " ", "https://shop.onrender.com", "*", "*.onrender.com", "a b", "a/b", "a:1", "ä"])
def test_invalid_platform_host_is_ignored(value: str) -> None:
    with_name = Settings.load({"SECRET_KEY": SECRET_KEY, "RENDER_EXTERNAL_HOSTNAME": value})
    assert with_name.allowed_origins == Settings.load({"SECRET_KEY": SECRET_KEY}).allowed_origins


def test_listed_own_origin_is_allowed(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_ALLOWED_ORIGINS="https://app.example.org,https://chat.example.com").test_client()
    headers = {"Origin": "https://chat.example.com", "Host": "chat.example.com", "X-Forwarded-Proto": "https"}
    assert client.post(ENDPOINT, headers=headers).status_code == 200


def test_log_names_the_setting(make_app: MakeApp, recorder: Recorder) -> None:
    make_app().test_client().post(ENDPOINT, headers={"Origin": "https://chat.example.com", "Host": "chat.example.com"})
    messages = [json.loads(line)["message"] for line in recorder.lines[-5:]]
    assert any("'https://chat.example.com'" in line and "add it to CHATKIT_ALLOWED_ORIGINS" in line for line in messages), (
        messages
    )


def test_start_up_notice_names_the_own_origin() -> None:
    def notice(**variables: str) -> str:
        notices = Settings.load({"SECRET_KEY": SECRET_KEY, **variables}).notices
        return next(text for text in notices if text.startswith("CHATKIT_ALLOWED_ORIGINS"))

    assert "https://shop.onrender.com" in notice(RENDER_EXTERNAL_HOSTNAME="shop.onrender.com")
    assert "list this service's own origin" in notice()
    assert "own origin" not in notice(CHATKIT_HOST_PAGE="false")


def test_localhost_page_is_always_allowed_in_development(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_ENV="development", PORT="8765", CHATKIT_ALLOWED_ORIGINS="https://app.example.org").test_client()
    for host in ("localhost:8765", "127.0.0.1:8765"):
        assert client.post(ENDPOINT, headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("host", ["xn--", "xn--.example.com", "xn--a", "a..b", "-", ".", "%", "[::1", "[:::::]", "x" * 300, ""])
@pytest.mark.parametrize("path", ["/", "/healthz", ENDPOINT, "/api/nothing"])
def test_invalid_host_header_is_not_a_500(production: Service, host: str, path: str) -> None:
    method = b"POST" if path == ENDPOINT else b"GET"
    listed, secure = b"Origin: http://localhost:3000\r\n", b"X-Forwarded-Proto: https\r\n"
    for more in (b"", listed, listed + secure, b"Origin: https://[\r\n" + secure, b"Origin: https://[:::::]\r\n" + secure):
        with socket.create_connection(("127.0.0.1", production.port), timeout=10) as sock:
            head = b"%b %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\nContent-Length: 0\r\n%b\r\n"
            sock.sendall(head % (method, path.encode(), host.encode(), more))
            status = int(sock.makefile("rb").readline().split()[1])
        assert status < 500
        sent = dict(line.split(": ", 1) for line in more.decode().splitlines())
        response = requests.request(method, f"{production.url}{path}", headers={"X-Forwarded-Host": host, **sent}, timeout=10)
        assert response.status_code < 500
