"""The contract in Chromium: the built Next.js app on one origin, the service under gunicorn on another."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import requests
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from tests.support.attachments import OFFERED
from tests.support.browser import FRONTEND, Visitor, answer_to, axe_violations, say
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, issue_session, issuing
from tests.support.identity_provider import SECRET, shared
from tests.support.next_app import NextApp, service_port
from tests.support.service import Service

LOADED = "Chat interface loaded"
UNMOUNT = "<script>parent.postMessage('unmount', '*')</script>"
"""The content of ChatKit's frame for a host that is not on OpenAI's domain allowlist."""


@pytest.fixture(scope="module")
def app() -> Iterator[NextApp]:
    """The app for a self-hosted chat."""
    with NextApp("selfhosted", f"http://localhost:{service_port()}", domain_key="local-dev") as running:
        yield running


@pytest.fixture(scope="module")
def hosted_app() -> Iterator[NextApp]:
    with NextApp("hosted", f"http://localhost:{service_port()}") as running:
        yield running


@pytest.fixture
def selfhosted(app: NextApp, tmp_path: Path) -> Callable[..., Service]:
    def make(**variables: str) -> Service:
        return Service(
            **{
                "PORT": str(service_port()),
                "CHATKIT_BACKEND": "selfhosted",
                "CHATKIT_ALLOWED_ORIGINS": app.url,
                "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db",
                **variables,
            }
        )

    return make


@pytest.fixture
def hosted(hosted_app: NextApp, fake_openai: FakeOpenAI) -> Callable[..., Service]:
    def make(**variables: str) -> Service:
        return Service(
            **{
                "PORT": str(service_port()),
                "CHATKIT_BACKEND": "hosted",
                "CHATKIT_ALLOWED_ORIGINS": hosted_app.url,
                "CHATKIT_API_BASE": fake_openai.url,
                "OPENAI_API_KEY": API_KEY,
                "CHATKIT_WORKFLOW_ID": WORKFLOW_ID,
                **variables,
            }
        )

    return make


def messages_sent(visitor: Visitor) -> list[str]:
    """The text of each message that the service accepted."""
    calls = [(call, json.loads(call.post_data or "{}")) for call in visitor.calls("/api/chatkit")]
    sent = [(call, body["params"]["input"]["content"][0]["text"]) for call, body in calls if "input" in body.get("params", {})]
    return [text for call, text in sent if (response := call.response()) and response.ok]


def visitor_of(visitor: Visitor) -> str:
    """The visitor in this browser's cookie: its payload, without timestamp and signature."""
    [cookie] = [cookie for cookie in visitor.context.cookies() if cookie["name"] == "chatkit_visitor"]
    assert cookie["httpOnly"]
    return cookie["value"].split(".")[0]


def shown_error(page: Page) -> Any:
    return page.get_by_role("alert").filter(has_text="Error: ")  # Next.js has its own alert for screen readers


def expect_ready(page: Page) -> None:
    expect(page.get_by_text(LOADED)).to_be_attached()


class TestDrawer:
    """The hook stays mounted while the chat is opened and closed."""

    def test_closing_is_not_an_error(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with selfhosted():
            page = visitor.open(f"{app.url}/drawer")
            errors = page.get_by_role("list", name="Events").get_by_role("listitem")
            for text in ("First", "Second"):
                expect(page.get_by_role("status")).to_have_text("ready")
                say(page, text)
                expect(answer_to(page, text)).to_be_visible()
                page.get_by_role("button", name="Drawer").click()
                expect(page.get_by_role("status")).to_have_text("not ready")
                page.get_by_role("button", name="Drawer").click()
            expect(page.get_by_role("status")).to_have_text("ready")
            assert errors.all_inner_texts() == []

    def test_chat_that_removes_itself_is_an_error(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with selfhosted():
            page = visitor.open(f"{app.url}/drawer")
            expect(page.get_by_role("status")).to_have_text("ready")
            page.get_by_role("button", name="Drawer").click()
            visitor.cdn_frame += UNMOUNT
            page.get_by_role("button", name="Drawer").click()
            expect(page.get_by_role("list", name="Events")).to_contain_text("removed itself")
            expect(page.get_by_role("status")).to_have_text("not ready")


class TestConversation:
    def test_conversation_continues_after_a_reload(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
            assert not page.get_by_text("Loading chat...").count()
            say(page, "Hello from a browser")
            expect(answer_to(page, "Hello from a browser")).to_be_visible()
            visitor_before = visitor_of(visitor)

            page.reload()
            expect(answer_to(page, "Hello from a browser")).to_be_visible()
            assert visitor_of(visitor) == visitor_before
            say(page, "And again")
            expect(answer_to(page, "And again")).to_be_visible()
        assert messages_sent(visitor) == ["Hello from a browser", "And again"]

    def test_loading_message(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        visitor.cdn_frame = ""
        with selfhosted():
            page = visitor.open(app.url)
            expect(page.get_by_role("status")).to_have_text("Loading chat...")

    def test_reply_is_streamed(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
            say(page, "Slowly")
            reply = page.get_by_role("log").locator(".assistant")
            expect(reply).to_contain_text("I am")
            early = reply.inner_text()
            expect(answer_to(page, "Slowly")).to_be_visible()
            assert len(early) < len(reply.inner_text())

    def test_another_browser_is_another_visitor(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor, browser: Browser
    ) -> None:
        with selfhosted(), browser.new_context() as elsewhere:
            page = visitor.open(app.url)
            expect_ready(page)
            say(page, "Mine")
            expect(answer_to(page, "Mine")).to_be_visible()
            thread = page.evaluate("localStorage['chatkit.thread']")
            # Another user who got hold of the thread's id.
            elsewhere.add_init_script(f"localStorage['chatkit.thread'] ??= {thread!r}")
            stranger = Visitor(elsewhere).open(app.url)
            expect(stranger.get_by_text("What can I help with today?")).to_be_visible()
            expect_ready(stranger)
            assert "Mine" not in stranger.content()
            assert stranger.evaluate("localStorage['chatkit.thread']") is None, (
                "a conversation that can't be loaded is forgotten"
            )
            assert not shown_error(stranger).count()

    def test_on_message_and_on_error_are_called(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with selfhosted():
            page = visitor.open(f"{app.url}/messages")
            events = page.get_by_role("list", name="Events").get_by_role("listitem")
            say(page, "Typed")
            expect(answer_to(page, "Typed")).to_be_visible()
            page.get_by_role("button", name="Send from the app").click()
            expect(answer_to(page, "From the app")).to_be_visible()
            assert events.all_inner_texts() == ["message: Typed", "message: From the app"]
        say(page, "Nobody is there")
        expect(events).to_have_count(3)
        assert events.last.inner_text().startswith("error: ")
        expect(page.get_by_label("Message the AI")).to_have_value("Nobody is there")


COMPOSER = {
    "models": [{"id": "gpt-fast", "label": "Fast"}, {"id": "gpt-best", "label": "Best", "default": True}],
    "tools": [{"id": "calendar", "label": "Calendar", "icon": "calendar"}],
}


class TestGardenExample:
    @pytest.fixture
    def page(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> Iterator[Page]:
        with selfhosted(CHATKIT_AGENT="examples.garden:GardenServer", CHATKIT_COMPOSER=json.dumps(COMPOSER)):
            page = visitor.open(f"{app.url}/garden")
            expect(page.get_by_label("Model")).to_be_visible()  # ready, and with what the service lists
            yield page

    def ask(self, page: Page, text: str) -> None:
        page.get_by_label("Ask the gardener").fill(text)
        page.get_by_role("button", name="Send", exact=True).click()

    def told(self, page: Page) -> Any:
        return page.get_by_role("list", name="Told").get_by_role("listitem")

    def test_widget_with_actions_of_the_server_and_of_the_page(self, page: Page) -> None:
        self.ask(page, "Show me plants")
        page.get_by_role("button", name="Show Kale").click()
        expect(self.told(page)).to_have_text(["plant.show: kale"])
        page.get_by_role("button", name="Star (0)").click()
        expect(page.get_by_role("button", name="Star (1)")).to_be_visible()
        page.get_by_role("button", name="Plant Kale").click()
        expect(page.get_by_role("log")).to_contain_text("Kale it is. Sow in May")
        expect(page.get_by_role("log")).to_contain_text("Kale (chosen)")
        expect(page.get_by_role("button", name="Plant Kale")).to_be_disabled()
        expect(self.told(page)).to_have_text(["plant.show: kale", 'garden/planted: {"plant":"kale"}'])

    def test_client_tool_an_effect_and_a_title(self, page: Page) -> None:
        self.ask(page, "Which bed?")
        expect(page.get_by_role("log")).to_contain_text('Done. {"asked": "selected_bed", "bed": "north"}')
        expect(page.locator(".heading")).to_have_text("Plans for the garden")
        self.ask(page, "Water it")
        expect(self.told(page)).to_have_text(['garden/watered: {"litres":5}'])

    def test_approval_that_waits_for_a_reload(self, page: Page) -> None:
        self.ask(page, "Order some seeds")
        expect(page.get_by_role("button", name="Reject")).to_be_visible()
        page.locator("openai-chatkit").evaluate("async (chat) => { await chat.fetchUpdates() }")
        page.get_by_role("button", name="Approve").click()
        expect(page.get_by_role("log")).to_contain_text("Done. 3 packets of kale are ordered.")
        expect(page.get_by_role("log")).to_contain_text("Approved.")
        expect(page.get_by_role("button", name="Approve")).to_have_count(0)
        expect(self.told(page)).to_have_text(['garden/ordered: {"plant":"kale","packets":3}'])

    def test_rejection_with_a_reason(self, page: Page) -> None:
        self.ask(page, "Order some seeds")
        page.get_by_placeholder("Reason for rejecting (optional)").fill("Too many")
        page.get_by_role("button", name="Reject").click()
        expect(page.get_by_role("log")).to_contain_text("Done. The user rejected this call. The user's reason: Too many")
        expect(page.get_by_role("log")).to_contain_text("Rejected: Too many")

    def test_sources_and_mentions(self, page: Page) -> None:
        self.ask(page, "Describe them")
        page.get_by_role("button", name="Runner bean").click()
        expect(self.told(page)).to_have_text(["source: bean"])
        self.ask(page, "@Kale")  # the server tells the model that it is a plant
        expect(page.get_by_role("button", name="Show Kale")).to_be_visible()

    def test_composer_offers_what_the_service_lists(self, page: Page, visitor: Visitor) -> None:
        assert page.get_by_label("Model").locator("option").all_inner_texts() == ["Fast", "Best"]
        assert page.get_by_label("Tool").locator("option").all_inner_texts() == ["No tool", "Calendar"]
        page.get_by_label("Tool").select_option("Calendar")
        self.ask(page, "What now?")
        expect(page.get_by_role("log")).to_contain_text("May: sow beans")
        (sent,) = [json.loads(call.post_data or "{}")["params"]["input"] for call in visitor.calls("/api/chatkit")]
        assert sent["inference_options"] == {"model": "gpt-best", "tool_choice": {"id": "calendar"}}


PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


class TestAttachments:
    @pytest.fixture
    def page(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> Iterator[Page]:
        with selfhosted(OPENAI_API_KEY="", **OFFERED):
            page = visitor.open(app.url)
            expect(page.get_by_label("Attach files")).to_be_visible()  # ready, and with what the service lists
            yield page

    def attach(self, page: Page, name: str, media_type: str, content: bytes) -> None:
        page.get_by_label("Attach files").set_input_files(FilePayload(name=name, mimeType=media_type, buffer=content))

    def test_image_and_file(self, page: Page) -> None:
        """The files go to the service, which is of another origin than the page."""
        self.attach(page, "pixel.png", "image/png", PIXEL)
        self.attach(page, "notes.md", "", b"# Notes")
        self.attach(page, "removed.txt", "text/plain", b"No")
        page.get_by_role("button", name="Remove removed.txt").click()
        expect(page.get_by_role("button", name="Remove pixel.png")).to_be_visible()
        expect(page.get_by_role("button", name="Remove notes.md")).to_be_visible()
        say(page, "Look at them")
        expect(page.get_by_role("log")).to_contain_text("notes.md.")
        for _ in ("sent", "loaded"):
            image = page.get_by_role("img", name="pixel.png")
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1
            expect(page.get_by_role("log")).to_contain_text("notes.md")
            page.reload()
        expect(page.get_by_role("log")).not_to_contain_text("removed.txt")
        assert not shown_error(page).count()

    def test_refused_file(self, page: Page) -> None:
        self.attach(page, "setup.exe", "application/x-msdownload", b"MZ")
        expect(shown_error(page)).to_contain_text("Files of this type can't be attached")


class TestExpiry:
    def test_expired_session_is_replaced_with_one_call(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with selfhosted(CHATKIT_SESSION_TTL="4"):
            page = visitor.open(app.url)
            expect_ready(page)
            say(page, "Before")
            expect(answer_to(page, "Before")).to_be_visible()
            before = len(visitor.calls())
            time.sleep(4.5)
            say(page, "After")
            expect(answer_to(page, "After")).to_be_visible()
        assert len(visitor.calls()) == before + 1
        assert messages_sent(visitor) == ["Before", "After"]

    def test_unknown_secret_is_replaced(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor, tmp_path: Path
    ) -> None:
        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
            with sqlite3.connect(tmp_path / "chatkit.db") as database:
                assert database.execute("DELETE FROM chat_sessions").rowcount == 1
            database.close()
            say(page, "Do you know me?")
            expect(answer_to(page, "Do you know me?")).to_be_visible()
        assert len(visitor.calls()) == 2
        assert messages_sent(visitor) == ["Do you know me?"]
        assert not shown_error(page).count()


class TestSignedIn:
    def test_users_have_their_own_sessions_and_sign_out_ends_them(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with selfhosted(AUTH_JWT_SECRET=SECRET) as service:
            page = visitor.open(f"{app.url}/sign-in#{shared(sub='ada')}")
            expect_ready(page)
            say(page, "As a visitor")
            expect(answer_to(page, "As a visitor")).to_be_visible()
            page.get_by_role("button", name="Sign in").click()
            expect(answer_to(page, "As a visitor")).not_to_be_attached()
            expect_ready(page)
            say(page, "As Ada")
            expect(answer_to(page, "As Ada")).to_be_visible()
            adas_secret = visitor.calls("/api/chatkit")[-1].headers["authorization"]
            page.get_by_role("button", name="Sign out").click()
            expect(answer_to(page, "As Ada")).not_to_be_attached()
            expect_ready(page)
            listing = {"type": "threads.list", "params": {}}
            response = requests.post(
                f"{service.url}/api/chatkit", json=listing, headers={"Authorization": adas_secret}, timeout=10
            )
        assert response.json()["code"] == "client_secret_expired"
        signed_in = ["authorization" in call.headers for call in visitor.calls()]
        assert signed_in == [False, True, False]
        assert not shown_error(page).count()

    def test_sign_in_required(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with selfhosted(AUTH_JWT_SECRET=SECRET, AUTH_REQUIRED="true"):
            page = visitor.open(f"{app.url}/sign-in#{shared(sub='ada')}")
            expect(shown_error(page)).to_contain_text("Please sign in, and try again.")
            page.get_by_role("button", name="Sign in").click()
            expect_ready(page)


class TestErrors:
    """Each with a service that is really in that state. Once it recovers, "Try again" shows the chat."""

    CONFIGURATION = "Error: Unable to start chat. Please check configuration."
    NETWORK = "Error: Network connection lost. Please check your internet."
    DOWN = "Error: Service temporarily down. Please try again."
    BUSY = "Error: Too many requests. Please try again in a moment."
    AGAIN = "Error: Unable to start chat. Please try again."

    def test_service_is_down(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        page = visitor.open(app.url)
        expect(shown_error(page)).to_contain_text(self.NETWORK)
        with selfhosted():
            self.try_again(page)

    @pytest.mark.parametrize(
        "body",
        [b"<!doctype html><title>Welcome to the proxy</title>", b'{"client_secret": "missing"}'],
        ids=["HTML", "JSON without a secret"],
    )
    def test_invalid_response(self, body: bytes, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with fake_service(app.url, body):
            page = visitor.open(app.url)
            expect(shown_error(page)).to_contain_text(self.AGAIN)
        with selfhosted():
            self.try_again(page)

    def test_blocked_cdn(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        script, visitor.cdn_script = visitor.cdn_script, None
        with selfhosted():
            page = visitor.open(app.url)
            expect(shown_error(page)).to_contain_text("The chat could not be loaded")
            visitor.cdn_script = script
            self.try_again(page)

    def test_domain_not_allowed(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        frame, visitor.cdn_frame = visitor.cdn_frame, UNMOUNT
        with selfhosted():
            page = visitor.open(app.url)
            expect(shown_error(page)).to_contain_text("may not be allowed on this website")
            visitor.cdn_frame = frame
            self.try_again(page)

    def test_chat_removed_after_it_was_ready(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        frame = visitor.cdn_frame
        visitor.cdn_frame = f"{frame}<script>setTimeout(() => parent.postMessage('unmount', '*'), 5000)</script>"
        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
            expect(shown_error(page)).to_contain_text("may not be allowed on this website")
            expect(page.get_by_text(LOADED)).not_to_be_attached()
            assert [line for line in visitor.console if line.startswith("error: ") and "domain allowlist" in line]
            visitor.cdn_frame = frame
            self.try_again(page)

    def test_network_failure_during_a_chat(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
        say(page, "Lost?")
        expect(shown_error(page)).to_have_text(self.NETWORK)
        expect(page.get_by_label("Message the AI")).to_have_value("Lost?")
        assert [line for line in visitor.console if line.startswith("error: ChatKit: ") and "Failed to fetch" in line]
        with selfhosted():
            page.get_by_role("button", name="Send", exact=True).click()
            expect(answer_to(page, "Lost?")).to_be_visible()
            assert not shown_error(page).count()

    def test_network_failure_during_a_reply(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with selfhosted() as service:
            page = visitor.open(app.url)
            expect_ready(page)
            say(page, "Lost?")
            expect(page.get_by_role("log").locator(".assistant")).to_contain_text("I am")
            for process in [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children()]:
                process.kill()
            service.process.wait(10)
        notice = page.get_by_role("status", name="Response")
        expect(notice).to_have_text(self.NETWORK.removeprefix("Error: "))
        with selfhosted():
            expect(notice).to_contain_text("The response was interrupted.", timeout=30_000)
            notice.get_by_role("button", name="Try again").click()
            expect(answer_to(page, "Lost?")).to_be_visible()
            expect(notice).not_to_be_attached()
            assert not shown_error(page).count()

    def test_rate_limit_during_a_chat(self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor) -> None:
        with selfhosted(CHATKIT_MAX_REQUESTS_PER_MINUTE="1", WEB_CONCURRENCY="1"):
            page = visitor.open(app.url)
            expect_ready(page)
            if time.time() % 60 > 40:
                time.sleep(20)  # so that both messages fall into one minute
            say(page, "One")
            expect(answer_to(page, "One")).to_be_visible()
            say(page, "Two")
            expect(shown_error(page)).to_have_text(self.BUSY)

    def test_failed_reply_shows_the_services_message(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
            say(page, "error")
            expect(shown_error(page)).to_have_text("Error: An error of the demo. Please try again.")

    @pytest.mark.parametrize("status", [429, 503, 0])
    def test_temporary_failure_keeps_the_conversation(
        self, status: int, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        def refuse(route: Route) -> None:
            if not status:
                return route.abort()
            if route.request.method == "OPTIONS":
                return route.fallback()
            cors = {"Access-Control-Allow-Origin": app.url, "Access-Control-Allow-Credentials": "true"}
            return route.fulfill(status=status, headers=cors, json={"status": "error", "message": "…", "code": "some_code"})

        with selfhosted():
            page = visitor.open(app.url)
            expect_ready(page)
            say(page, "Remember me")
            expect(answer_to(page, "Remember me")).to_be_visible()
            page.route("**/api/chatkit", refuse)
            page.reload()
            expect(shown_error(page)).to_contain_text({429: self.BUSY, 503: self.DOWN, 0: self.NETWORK}[status])
            page.unroute("**/api/chatkit")
            self.try_again(page)
            expect(answer_to(page, "Remember me")).to_be_visible()

    def test_retry_by_keyboard_keeps_the_focus_in_the_chat(
        self, app: NextApp, selfhosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        focused = "document.activeElement.getAttribute('aria-label')"
        page = visitor.open(app.url)
        page.get_by_role("button", name="Try again").focus()
        page.keyboard.press("Enter")
        expect(shown_error(page)).to_be_visible()
        assert page.evaluate(focused) == "Chat"
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Try again")).to_be_focused()
        with selfhosted():
            page.keyboard.press("Enter")
            expect_ready(page)
            assert page.evaluate(focused) == "Chat"

    @staticmethod
    def try_again(page: Page) -> None:
        page.get_by_role("button", name="Try again").click()
        expect_ready(page)
        assert not shown_error(page).count()


class TestHostedErrors:
    """Errors of the hosted backend, which need an app built for it."""

    @pytest.mark.parametrize(
        ("behaviour", "sentence"),
        [
            (failing(401, "invalid_api_key"), TestErrors.CONFIGURATION),
            (failing(404, "not_found"), TestErrors.CONFIGURATION),
            (failing(429, "rate_limit_exceeded"), TestErrors.BUSY),
            (failing(503, "server_error"), TestErrors.DOWN),
        ],
        ids=["key rejected", "workflow of another project", "rate limited", "OpenAI down"],
    )
    def test_errors_of_openai(
        self,
        behaviour: Any,
        sentence: str,
        hosted_app: NextApp,
        hosted: Callable[..., Service],
        visitor: Visitor,
        fake_openai: FakeOpenAI,
    ) -> None:
        fake_openai.behaviour = behaviour
        with hosted():
            page = visitor.open(hosted_app.url)
            expect(shown_error(page)).to_contain_text(sentence)
            assert not page.get_by_text("Loading chat...").count()
            expect(page.get_by_label("Message the AI")).to_be_attached()
            for call in visitor.calls():  # by the page and by ChatKit
                call.response()
            fake_openai.behaviour = issue_session
            TestErrors.try_again(page)
        for secret in (API_KEY, WORKFLOW_ID):
            assert secret not in page.content() + "".join(visitor.console)

    @pytest.mark.parametrize(
        ("variables", "sentence"),
        [
            ({"CHATKIT_WORKFLOW_ID": ""}, TestErrors.CONFIGURATION),
            ({"OPENAI_API_KEY": ""}, TestErrors.CONFIGURATION),
            # The browser reports only that the request failed. The log has the origin.
            ({"CHATKIT_ALLOWED_ORIGINS": "https://elsewhere.example.com"}, TestErrors.NETWORK),
        ],
        ids=["workflow missing", "key missing", "origin not listed"],
    )
    def test_missing_settings_and_unlisted_origin(
        self, variables: dict[str, str], sentence: str, hosted_app: NextApp, hosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with hosted(**variables):
            page = visitor.open(hosted_app.url)
            expect(shown_error(page)).to_contain_text(sentence)
        with hosted():
            TestErrors.try_again(page)


class TestHosted:
    def test_conversation_with_openai_continues_after_expiry(
        self, hosted_app: NextApp, hosted: Callable[..., Service], visitor: Visitor, fake_openai: FakeOpenAI
    ) -> None:
        """A route stands in for OpenAI's chat, and refuses expired secrets."""
        messages: list[str] = []
        secrets: list[str] = []

        def converse(route: Route) -> None:
            cors = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*, Authorization"}
            if route.request.method == "OPTIONS":
                return route.fulfill(headers=cors)
            secret = route.request.headers["authorization"].removeprefix("Bearer ")
            if time.time() > expiry[secret]:
                return route.fulfill(status=401, headers=cors, json={})
            secrets.append(secret)
            messages.append(json.loads(route.request.post_data or "")["params"]["input"]["content"][0]["text"])
            item = {"id": f"msg_{len(messages)}", "type": "assistant_message", "content": [{"text": f"Heard {messages[-1]}"}]}
            event = f"data: {json.dumps({'type': 'thread.item.done', 'item': item})}\n\n"
            return route.fulfill(headers=cors, body=event, content_type="text/event-stream")

        expiry: dict[str, float] = {}

        def issue_short_session(handler: Any) -> None:
            secret = f"ek_test_{len(expiry)}"
            expiry[secret] = int(time.time()) + 10
            issuing(client_secret=secret, expires_at=int(expiry[secret]))(handler)

        fake_openai.behaviour = issue_short_session
        visitor.context.route("https://api.openai.com/**", converse)
        with hosted():
            page = visitor.open(hosted_app.url)
            expect_ready(page)
            say(page, "one")
            expect(page.get_by_text("Heard one")).to_be_visible()
            time.sleep(10.5)
            say(page, "two")
            expect(page.get_by_text("Heard two")).to_be_visible()
        assert messages == ["one", "two"]
        assert secrets == ["ek_test_0", "ek_test_1"]
        assert len(visitor.calls()) == len(fake_openai.received) == 2

    def test_on_message_is_called_for_messages_of_the_app(
        self, hosted_app: NextApp, hosted: Callable[..., Service], visitor: Visitor
    ) -> None:
        with hosted():
            page = visitor.open(f"{hosted_app.url}/messages")
            page.get_by_role("button", name="Send from the app").click()
            expect(page.get_by_role("list", name="Events")).to_contain_text("message: From the app")


def test_five_chats_in_strict_mode_make_one_call(selfhosted: Callable[..., Service], visitor: Visitor) -> None:
    """Under ``next dev``, because React's strict mode runs effects twice only there."""
    with (
        NextApp("five", f"http://localhost:{service_port()}", domain_key="local-dev", dev=True) as app,
        selfhosted(CHATKIT_ALLOWED_ORIGINS=app.url),
    ):
        assert requests.get(f"{app.url}/five", timeout=120).ok  # compiles the page
        page = visitor.open(f"{app.url}/five")
        expect(page.get_by_text(LOADED)).to_have_count(5, timeout=60_000)
        assert len(visitor.calls()) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [(1280, 800), (360, 640)], ids=["desktop", "phone"])
def test_accessibility_and_layout(
    scheme: Any, viewport: tuple[int, int], app: NextApp, selfhosted: Callable[..., Service], browser: Browser
) -> None:
    width, height = viewport
    with selfhosted(), browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}) as context:
        page = Visitor(context).open(app.url)
        expect_ready(page)
        assert axe_violations(page) == []
        chat = page.locator("openai-chatkit")
        assert chat.get_attribute("color-scheme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.keyboard.press("Tab")  # from the top of the page into the chat, by keyboard
        while page.evaluate("document.activeElement.shadowRoot?.activeElement?.name") != "message":
            page.keyboard.press("Tab")
        page.keyboard.type("By keyboard")
        page.keyboard.press("Enter")
        expect(answer_to(page, "By keyboard")).to_be_visible()
        expect(page.get_by_label("Message the AI")).to_be_in_viewport()
    page_with_error(scheme, viewport, app, browser)


def page_with_error(scheme: Any, viewport: tuple[int, int], app: NextApp, browser: Browser) -> None:
    width, height = viewport
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}) as context:
        page = Visitor(context).open(app.url)
        expect(shown_error(page)).to_be_visible()
        assert axe_violations(page) == []
        retry = page.get_by_role("button", name="Try again").bounding_box()
        assert retry
        assert retry["height"] >= 44, "large enough for touch"


def test_syntax_of_the_build_suits_the_contracts_browsers(app: NextApp) -> None:
    """ES2021, which Chrome 85, Edge 85, Firefox 79 and Safari 14 support completely."""
    chunks = f"{app.folder}/.next/static/**/*.js"
    checked = subprocess.run(
        [FRONTEND / "node_modules/.bin/es-check", "es2021", chunks], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "checking 0 files" not in checked.stdout


@contextmanager
def fake_service(origin: str, body: bytes) -> Iterator[None]:
    """A server in place of the service that responds to everything with ``body``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Credentials", "true")
            self.send_header("Access-Control-Allow-Headers", "content-type")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_OPTIONS = do_POST  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", service_port()), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield
        server.shutdown()
