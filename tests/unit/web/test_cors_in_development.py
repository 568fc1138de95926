"""In development, pages of localhost may call the API from any port. In production, only listed origins may."""

from __future__ import annotations

import pytest

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", ["", ":3000", ":3001", ":65535"])
def test_localhost_origins(host: str, port: str, make_app: MakeApp) -> None:
    origin = f"http://{host}{port}"
    headers = {"Host": "localhost:8000", "Origin": origin}
    response = make_app(CHATKIT_ENV="development").test_client().post(ENDPOINT, headers=headers)
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
    if origin != "http://localhost:3000":
        assert make_app().test_client().post(ENDPOINT, headers=headers).status_code == 403
    listed = make_app(CHATKIT_ENV="development", CHATKIT_ALLOWED_ORIGINS="https://app.example.com")
    assert listed.test_client().post(ENDPOINT, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        "https://localhost:3000",
        "http://localhost.evil.test:3000",
        "http://evil.test",
        "http://localhost:3000.evil.test",
        "http://localhost:",
        "http://localhost:3000/",
        "http://localhost:3000\n",
        "http://127.0.0.1.evil.test",
        "http://127a0a0a1:3000",
        "http://192.168.1.5:3000",
        "null",
    ],
)
def test_other_origins_are_refused(origin: str, make_app: MakeApp) -> None:
    client = make_app(CHATKIT_ENV="development").test_client()
    environ = {"HTTP_ORIGIN": origin}  # the test client's headers can't contain a newline
    assert client.post(ENDPOINT, environ_overrides=environ).status_code == 403
