"""The host page: what it shows in Chromium for each state of the service."""

from __future__ import annotations

import base64
import re
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from chatkit.backends.selfhosted.chat.demo import INTRODUCTION
from tests.support.browser import FRONTEND, Visitor, axe_violations
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, issue_session
from tests.support.responses_api import draws, says, streaming
from tests.support.service import PROJECT, Service, free_port

REPLY_END = INTRODUCTION.format(said="Hello!")[-30:]


def test_built_script_is_up_to_date(tmp_path: Path) -> None:
    built = tmp_path / "host.js"
    subprocess.run(["npm", "run", "build:host-page", "--", f"--outfile={built}"], cwd=FRONTEND, check=True, capture_output=True)
    message = "static/host.js is stale: run `npm run build:host-page` in frontend/, and commit it"
    assert built.read_text() == (PROJECT / "static/host.js").read_text(), message


def step(page: Page, name: str) -> Any:
    return page.get_by_role("list", name="Steps").locator("li").filter(has_text=re.compile(f"^{name}"))


def expect_all_ok(page: Page) -> None:
    for name in ("Settings", "Session", "Component", "Chat"):
        expect(step(page, name)).to_have_attribute("data-state", "ok")


def png(width: int) -> bytes:
    """A black image of this width."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 + width))) + chunk(b"IEND", b"")


def hosted(fake_openai: FakeOpenAI, **variables: str) -> Service:
    """A hosted service in production, where the page's own origin has to be listed."""
    port = str(free_port())
    complete = {"OPENAI_API_KEY": API_KEY, "CHATKIT_WORKFLOW_ID": WORKFLOW_ID, "CHATKIT_API_BASE": fake_openai.url}
    own = {"PORT": port, "CHATKIT_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"}
    return Service(**{"CHATKIT_BACKEND": "hosted", **own, **complete, **variables})


def development(tmp_path: Path, *, app: str = "", **variables: str) -> Service:
    """The service as ``make run`` starts it, with its own database."""
    return Service(app, CHATKIT_ENV="development", SECRET_KEY="", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db", **variables)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A ``development`` service for the tests that do not stop it. Each test has its own browser context and visitor."""
    with development(tmp_path_factory.mktemp("shared"), app="tests.support.quick_demo:app") as service:
        yield service


class TestInTheBrowser:
    def test_first_reply_without_settings(self, tmp_path: Path, visitor: Visitor) -> None:
        with development(tmp_path) as service:
            page = visitor.open(f"http://localhost:{service.port}")
            expect_all_ok(page)
            expect(step(page, "Session")).to_contain_text(re.compile(r"(600|59\d) s left, ses_[\w-]{32}"))
            page.get_by_role("button", name="Say hello").click()
            expect(page.get_by_role("log")).to_contain_text(REPLY_END)
            page.reload()
            expect(page.get_by_role("log")).to_contain_text(REPLY_END)
            whole = page.content() + "".join(visitor.console)
        assert "cs_" not in whole, "the secret is on the page or on its console"
        assert not [line for line in visitor.console if not line.startswith("log: ")], (
            "the Content-Security-Policy blocks something"
        )
        assert f"http://localhost:{service.port}  in a browser" in service.stop()

    def test_chat_continues_after_expire_session(self, shared: Service, visitor: Visitor) -> None:
        page = visitor.open(shared.url)
        expect_all_ok(page)
        page.get_by_role("button", name="Expire session").click()
        expect(step(page, "Session")).to_contain_text("expired")
        page.get_by_role("button", name="Say hello").click()
        expect(page.get_by_role("log")).to_contain_text(REPLY_END)
        expect(step(page, "Session")).to_contain_text(re.compile(r"(600|59\d) s left"))
        assert len(visitor.calls()) == 2

    def test_new_session_keeps_the_conversation(self, shared: Service, visitor: Visitor) -> None:
        page = visitor.open(shared.url)
        expect_all_ok(page)
        page.get_by_role("button", name="Say hello").click()
        expect(page.get_by_role("log")).to_contain_text(REPLY_END)
        first = step(page, "Session").inner_text().split(", ")[1]
        page.get_by_role("button", name="New session").click()
        expect(step(page, "Session")).not_to_contain_text(first)
        expect_all_ok(page)
        expect(page.get_by_role("log")).to_contain_text(REPLY_END)
        assert len(visitor.calls()) == 2

    def test_deleted_conversation_is_forgotten(self, shared: Service, visitor: Visitor) -> None:
        visitor.context.add_init_script("localStorage['chatkit.thread'] ??= sessionStorage.tried ? '' : 'thr_gone'")
        visitor.context.add_init_script("sessionStorage.tried = 'yes'")
        page = visitor.open(shared.url)
        deadline = time.monotonic() + 15
        while page.evaluate("localStorage['chatkit.thread']"):
            assert time.monotonic() < deadline
            page.wait_for_timeout(50)
        expect_all_ok(page)
        page.get_by_role("button", name="Say hello").click()
        expect(page.get_by_role("log")).to_contain_text(REPLY_END)
        expect(page.get_by_role("alert")).to_be_hidden()

    def test_conversation_that_fails_to_load_is_kept(self, shared: Service, visitor: Visitor) -> None:
        page = visitor.open(shared.url)
        expect_all_ok(page)
        page.get_by_role("button", name="Say hello").click()
        expect(page.get_by_role("log")).to_contain_text(REPLY_END)
        page.route("**/api/chatkit", lambda route: route.fulfill(status=503, json={}))
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("Service temporarily down")
        page.unroute("**/api/chatkit")
        page.get_by_role("button", name="New session").press("Enter")
        expect(page.get_by_role("log")).to_contain_text(REPLY_END)
        expect(page.get_by_role("button", name="New session")).to_be_focused()

    def test_repeated_clicks_on_new_session(self, shared: Service, visitor: Visitor) -> None:
        page = visitor.open(shared.url)
        page.get_by_role("button", name="New session").click(click_count=5)
        expect_all_ok(page)
        page.wait_for_timeout(1000)
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("openai-chatkit")).to_have_count(1)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_dark_mode(self, scheme: Any, shared: Service, browser: Browser) -> None:
        other = {"light": "dark", "dark": "light"}[scheme]
        size: Any = {"width": 360, "height": 740}
        with browser.new_context(color_scheme=scheme, viewport=size) as context:
            page = Visitor(context).open(shared.url)
            expect_all_ok(page)
            assert page.locator("openai-chatkit").get_attribute("color-scheme") == scheme
            assert axe_violations(page) == []
            page.get_by_role("button", name="Dark mode").click()
            assert page.locator("openai-chatkit").get_attribute("color-scheme") == other
            assert axe_violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") == 360

    def test_dark_mode_follows_the_system(self, shared: Service, visitor: Visitor) -> None:
        page = visitor.open(shared.url)
        expect_all_ok(page)
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("openai-chatkit")).to_have_attribute("color-scheme", scheme)
            pressed = page.get_by_role("button", name="Dark mode").get_attribute("aria-pressed")
            assert pressed == {"dark": "true", "light": "false"}[scheme]

    @pytest.mark.parametrize("width", [780, 800, 1024, 1280])
    def test_chat_is_wider_than_the_status(self, width: int, shared: Service, browser: Browser) -> None:
        with browser.new_context(viewport={"width": width, "height": 600}) as context:
            page = Visitor(context).open(shared.url)
            expect_all_ok(page)
            status, chat = page.locator("#status").bounding_box(), page.locator("#chat").bounding_box()
            assert status
            assert chat
            assert chat["width"] > status["width"]
            assert chat["y"] + chat["height"] <= 600

    def test_generated_image(self, tmp_path: Path, fake_openai: FakeOpenAI, visitor: Visitor) -> None:
        """While it is generated, when it is complete, and after a reload."""
        partial, complete = (base64.b64encode(png(width)).decode() for width in (2, 3))
        drawing = draws(complete, partial)
        drawing.insert(-2, 6.0)
        fake_openai.behaviour = streaming([*drawing, *says("Here it is")])
        own = {"OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": fake_openai.url}
        with development(tmp_path, CHATKIT_AGENT="tests.support.agents_under_test:simple", **own) as service:
            page = visitor.open(f"http://localhost:{service.port}")
            expect_all_ok(page)
            page.get_by_role("button", name="Say hello").click()
            image = page.get_by_alt_text("Generated image")
            expect(image).to_have_js_property("naturalWidth", 2)
            expect(image).to_have_js_property("naturalWidth", 3)
            expect(page.get_by_role("log")).to_contain_text("Here it is")
            src = re.compile(rf"http://localhost:{service.port}/api/chatkit/images/img_\w+\?token=")
            expect(image).to_have_attribute("src", src)
            page.reload()
            expect(image).to_have_attribute("src", src)
            expect(image).to_have_js_property("naturalWidth", 3)
            assert not [line for line in visitor.console if "Content-Security-Policy" in line]
            self.expect_shown_on_another_site(visitor, image.get_attribute("src") or "")

    @staticmethod
    def expect_shown_on_another_site(visitor: Visitor, url: str) -> None:
        """As in ChatKit's frame: on an isolated page of another origin, with and without CORS."""
        visitor.context.grant_permissions(["local-network-access"])  # Chromium asks for it because of the service's address
        page = visitor.context.new_page()
        both = f'<img src="{url}"><img src="{url}" crossorigin>'
        isolated = {"Cross-Origin-Embedder-Policy": "require-corp", "Content-Type": "text/html"}
        page.route("http://127.0.0.1:1/", lambda route: route.fulfill(body=both, headers=isolated))
        page.goto("http://127.0.0.1:1/")
        for number in (0, 1):
            expect(page.locator("img").nth(number)).to_have_js_property("naturalWidth", 3)

    def test_hosted_backend(self, fake_openai: FakeOpenAI, visitor: Visitor) -> None:
        with hosted(fake_openai) as service:
            page = visitor.open(service.url)
            expect_all_ok(page)
            expect(step(page, "Session")).to_contain_text("cksess_")
        assert "ek_test" not in page.content() + "".join(visitor.console)


class TestErrors:
    """The step that fails, and the advice."""

    @pytest.mark.parametrize(
        ("status", "advice"),
        [(401, "Set another OPENAI_API_KEY"), (404, "another project"), (429, "limits"), (503, "Try again")],
    )
    def test_errors_of_openai(self, status: int, advice: str, fake_openai: FakeOpenAI, visitor: Visitor) -> None:
        fake_openai.behaviour = failing(status, "some_code")
        with hosted(fake_openai) as service:
            page = visitor.open(service.url)
            expect(step(page, "Session")).to_have_attribute("data-state", "failed")
            expect(page.get_by_role("alert")).to_contain_text(advice)
            for working in ("Settings", "Component"):
                expect(step(page, working)).to_have_attribute("data-state", "ok")
            expect(page.locator("openai-chatkit")).to_be_visible()  # it is ready, but unusable
            expect(step(page, "Chat")).to_contain_text("there is no session")
            assert axe_violations(page) == []
            fake_openai.behaviour = issue_session
            page.get_by_role("button", name="New session").click()
            expect_all_ok(page)
            expect(page.get_by_role("alert")).to_be_hidden()
            assert WORKFLOW_ID not in page.content()
            assert API_KEY not in page.content()

    @pytest.mark.parametrize("missing", ["OPENAI_API_KEY", "CHATKIT_WORKFLOW_ID"])
    def test_missing_setting(self, missing: str, fake_openai: FakeOpenAI, visitor: Visitor) -> None:
        with hosted(fake_openai, **{missing: ""}) as service:
            page = visitor.open(service.url)
            expect(step(page, "Settings")).to_have_attribute("data-state", "failed")
            expect(step(page, "Settings")).to_contain_text(missing)
            expect(page.get_by_role("alert")).to_contain_text(f"Set {missing} and restart")

    def test_two_missing_settings(self, fake_openai: FakeOpenAI, visitor: Visitor) -> None:
        with hosted(fake_openai, OPENAI_API_KEY="", CHATKIT_WORKFLOW_ID="") as service:
            page = visitor.open(service.url)
            expect(page.get_by_role("alert")).to_contain_text("Set OPENAI_API_KEY and CHATKIT_WORKFLOW_ID and restart")

    def test_unlisted_own_origin(self, fake_openai: FakeOpenAI, visitor: Visitor) -> None:
        """On a platform that does not pass the service its host name."""
        with hosted(fake_openai, CHATKIT_ALLOWED_ORIGINS="") as service:
            page = visitor.open(service.url)
            expect(step(page, "Session")).to_have_attribute("data-state", "failed")
            expect(page.get_by_role("alert")).to_contain_text(f"add {service.url} to CHATKIT_ALLOWED_ORIGINS")
            assert "list this service's own origin" in (log := service.stop())
            assert f"the page's origin is '{service.url}'" in log
        assert fake_openai.received == []

    def test_blocked_cdn(self, shared: Service, visitor: Visitor) -> None:
        script, visitor.cdn_script = visitor.cdn_script, None
        page = visitor.open(shared.url)
        expect(step(page, "Component")).to_have_attribute("data-state", "failed")
        expect(step(page, "Session")).to_have_attribute("data-state", "ok")
        expect(step(page, "Chat")).to_contain_text("the component is not loaded")
        expect(page.get_by_role("alert")).to_contain_text("ad blocker")
        visitor.cdn_script = script
        page.get_by_role("button", name="New session").click()
        expect_all_ok(page)

    def test_domain_not_allowed(self, shared: Service, visitor: Visitor) -> None:
        visitor.cdn_frame = "<script>parent.postMessage('unmount', '*')</script>"
        page = visitor.open(shared.url)
        expect(step(page, "Chat")).to_have_attribute("data-state", "failed")
        expect(page.get_by_role("alert")).to_contain_text("settings/organization/security/domain-allowlist")

    def test_chat_removed_after_it_was_ready(self, shared: Service, visitor: Visitor) -> None:
        visitor.cdn_frame += "<script>setTimeout(() => parent.postMessage('unmount', '*'), 5000)</script>"
        page = visitor.open(shared.url)
        expect_all_ok(page)
        expect(step(page, "Chat")).to_have_attribute("data-state", "failed")
        expect(page.get_by_role("alert")).to_contain_text("settings/organization/security/domain-allowlist")

    def test_blank_frame(self, shared: Service, visitor: Visitor) -> None:
        visitor.cdn_frame = ""
        page = visitor.open(shared.url)
        expect(step(page, "Chat")).to_have_attribute("data-state", "failed", timeout=30_000)
        expect(page.get_by_role("alert")).to_contain_text("stays blank")

    def test_service_restart(self, tmp_path: Path, visitor: Visitor) -> None:
        with development(tmp_path) as service:
            page = visitor.open(service.url)
            expect_all_ok(page)
        self.expect_unreachable(page)
        expect(page.get_by_role("alert")).to_be_hidden()  # no request has failed
        with development(tmp_path, PORT=str(service.port)):
            expect(step(page, "Settings")).to_contain_text("complete", timeout=30_000)
            expect_all_ok(page)
        assert len(visitor.calls()) == 1

    def test_service_stops_during_a_chat(self, tmp_path: Path, visitor: Visitor) -> None:
        with development(tmp_path) as service:
            page = visitor.open(service.url)
            expect_all_ok(page)
        page.get_by_role("button", name="Say hello").click()
        expect(page.get_by_role("alert")).to_contain_text("Network connection lost. Please check your internet.")
        expect(page.get_by_role("alert")).to_contain_text("still running")
        self.expect_unreachable(page)
        page.get_by_role("button", name="New session").click()
        expect(step(page, "Session")).to_contain_text("none")
        expect(page.get_by_role("alert")).to_contain_text("still running")
        self.expect_unreachable(page)
        with development(tmp_path, PORT=str(service.port)):
            expect(step(page, "Settings")).to_contain_text("complete", timeout=30_000)
            expect_all_ok(page)
            expect(page.get_by_role("alert")).to_be_hidden()

    @staticmethod
    def expect_unreachable(page: Page) -> None:
        expect(step(page, "Settings")).to_contain_text("does not respond", timeout=30_000)
        for name in ("Session", "Chat"):
            expect(step(page, name)).to_have_attribute("data-state", "failed")
