"""Clients can't hide behind what they add to the headers of proxies."""

from __future__ import annotations

import pytest

from chatkit.web.proxy_fix import ProxyFix
from tests.support.applications import MakeApp

GIVEN = ["", "7.7.7.1, ", '7.7.7.1, ", ', '", ', '"7.7.7.1", ', '"7.7.7.1\\", ', "7.7.7.1,,, "]


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("given", GIVEN)
def test_address(given: str, hops: int) -> None:
    added = ", ".join(["203.0.113.9", "66.241.124.1"][:hops])
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": given + added}
    ProxyFix(lambda _environ, _start: (), x_for=hops)(environ, lambda *_: lambda _chunk: None)
    assert environ["REMOTE_ADDR"] == "203.0.113.9"


@pytest.mark.parametrize(("header", "hops"), [("", 1), ("203.0.113.9", 2), ("203.0.113.9", 0)])
def test_peer_without_enough_values(header: str, hops: int) -> None:
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": header}
    ProxyFix(lambda _environ, _start: (), x_for=hops)(environ, lambda *_: lambda _chunk: None)
    assert environ["REMOTE_ADDR"] == "10.0.0.1"


def test_quote_does_not_give_another_rate_limit(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_BACKEND="selfhosted", PROXY_HOPS="1", RATE_LIMIT="2").test_client(use_cookies=False)
    statuses = [
        client.post("/api/chatkit/sessions", headers={"X-Forwarded-For": f"{given}203.0.113.9"}).status_code
        for given in ("", '7.7.7.1, ", ', '", ')
    ]
    assert statuses == [200, 200, 429]
