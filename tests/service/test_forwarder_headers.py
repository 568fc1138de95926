"""gunicorn accepts SCRIPT_NAME and PATH_INFO headers from no peer, not even from localhost, because they choose the route."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.support.applications import MakeApp
from tests.support.endpoint import ENDPOINT
from tests.support.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path_factory.mktemp('db')}/chatkit.db"
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, WEB_CONCURRENCY="1") as running:
        yield running


def get(service: Service, path: str, *lines: str) -> int:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
        head = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]
        sock.sendall("\r\n".join(head).encode())
        match = re.match(rb"HTTP/1.1 (\d{3})", sock.makefile("rb").readline())
    assert match
    return int(match[1])


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "Script_Name", "script_name", "SCRIPT-NAME", "X-Script-Name"])
def test_script_name_header_is_ignored(service: Service, name: str) -> None:
    assert get(service, "/healthz", f"{name}: /elsewhere") == 200
    assert get(service, "/elsewhere/healthz", f"{name}: /elsewhere") == 404
    assert get(service, "/healthz", f"{name}: /healthz") == 200


@pytest.mark.parametrize("name", ["PATH_INFO", "path_info", "PATH-INFO"])
def test_path_info_header_is_ignored(service: Service, name: str) -> None:
    assert get(service, "/nothing", f"{name}: /healthz") == 404
    assert get(service, "/healthz", f"{name}: /nothing") == 200


@pytest.mark.parametrize(("hops", "secure"), [("0", False), ("1", True), ("2", True), ("3", True)])
def test_one_scheme_from_several_proxies(make_app: MakeApp, hops: str, secure: bool) -> None:
    """Each proxy adds an address, but the scheme has one value on platforms whose proxy is behind a CDN."""
    forwarded = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7, 10.0.0.1", "X-Forwarded-Proto": "https"}
    response = make_app(PROXY_HOPS=hops).test_client().post(ENDPOINT, headers=forwarded)
    assert response.headers["Set-Cookie"].startswith("__Host-") is secure
