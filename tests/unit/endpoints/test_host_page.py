"""The parts of the host page. What it shows in a browser is in tests/browser/test_host_page.py."""

from __future__ import annotations

import re

import pytest

from chatkit.web import errors
from tests.support.applications import MakeApp
from tests.support.browser import FRONTEND
from tests.support.fake_openai import API_KEY, WORKFLOW_ID


class TestPage:
    def test_content_security_policy(self, make_app: MakeApp) -> None:
        response = make_app().test_client().get("/")
        policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self' https://cdn.platform.openai.com",
            "style-src": "'self' 'unsafe-inline'",
            "frame-src": "https://cdn.platform.openai.com",
            "connect-src": "'self' https://api.openai.com",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert "<script>" not in response.text
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Referrer-Policy"] == "strict-origin-when-cross-origin"

    def test_contains_no_secret(self, make_app: MakeApp) -> None:
        client = make_app().test_client()
        whole = client.get("/").text + client.get("/static/host.js").text
        assert API_KEY not in whole
        assert WORKFLOW_ID not in whole
        assert "Set-Cookie" not in client.get("/").headers

    def test_domain_key_is_for_selfhosted_only(self, make_app: MakeApp) -> None:
        key = 'data-domain-key="domain_pk_test"'
        assert key in make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_DOMAIN_KEY="domain_pk_test").test_client().get("/").text
        assert "domain-key" not in make_app(CHATKIT_DOMAIN_KEY="domain_pk_test").test_client().get("/").text

    @pytest.mark.parametrize("path", ["/", "/static/host.js"])
    def test_switched_off(self, path: str, make_app: MakeApp) -> None:
        response = make_app(CHATKIT_HOST_PAGE="false").test_client().get(path)
        assert (response.status_code, response.json["code"]) == (404, "not_found")  # type: ignore[index]

    @pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/"])
    def test_other_files_are_not_served(self, path: str, make_app: MakeApp) -> None:
        assert make_app().test_client().get(path).status_code == 404

    def test_advice_for_every_error_code(self) -> None:
        advised = set(re.findall(r"^  (\w+):", (FRONTEND / "host-page/advice.ts").read_text(), re.MULTILINE))
        codes = {str(code) for error in vars(errors).values() if isinstance(code := getattr(error, "code", None), str)}
        for_callers = {"invalid_request_body", "user_mismatch", "attachments_off", "unsupported_media_type"}
        for_callers |= {"invalid_token", "sign_in_unavailable", "openai_session_not_ended"}  # the page has no sign-in
        of_the_chat = {code for code in codes if code.startswith("client_secret_")}
        unadvised = codes - advised - for_callers - of_the_chat - {"not_ready", "internal_server_error", "not_found"}
        assert not unadvised, "frontend/host-page/advice.ts has no advice for these"
