"""Chromium, with a stand-in for OpenAI's CDN."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect, sync_playwright

from tests.support import programs
from tests.support.service import PROJECT

CDN = "https://cdn.platform.openai.com"
STAND_IN = Path(__file__).parent / "stand_in"
FRONTEND = PROJECT / "frontend"
expect.set_options(timeout=15_000)  # for slow or busy machines


@functools.cache
def stand_in_script() -> str:
    """Build the stand-in for the CDN's script."""
    esbuild = str(FRONTEND / "node_modules/.bin/esbuild")
    command = [esbuild, str(STAND_IN / "openai-chatkit.ts"), "--target=es2020", "--format=iife"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def packaged_chromium() -> str:
    """Unpack the Chromium of the package @sparticuz/chromium, with its libraries and fonts, and return its path."""
    folder = tempfile.mkdtemp(prefix="chatkit-chromium-")
    atexit.register(shutil.rmtree, folder)
    variables = {"TMPDIR": folder, "AWS_EXECUTION_ENV": "AWS_Lambda_nodejs24.x"}  # makes it unpack the libraries as well
    unpack = "import('@sparticuz/chromium').then(package => package.default.executablePath())"
    unpacked = subprocess.run(
        ["node", "--eval", unpack], cwd=FRONTEND, env={**os.environ, **variables}, capture_output=True, check=False
    )
    executable = Path(folder) / "run"
    executable.write_text(
        f'#!/bin/sh\nexport LD_LIBRARY_PATH={folder}/al2023/lib FONTCONFIG_PATH={folder}/fonts\nexec {folder}/chromium "$@"\n'
    )
    executable.chmod(0o755)
    started = subprocess.run([executable, "--version"], capture_output=True, check=False)
    if unpacked.returncode or started.returncode:  # it runs only on Linux on x86-64
        programs.skip("chromium", package="chromium")
    return str(executable)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium or Chrome, or else the one of the npm package."""
    executable = next(filter(None, map(shutil.which, ["chromium", "google-chrome", "chromium-browser"])), None)
    executable = executable or packaged_chromium()
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable, args=quiet) as browser:
        yield browser


@dataclass
class Visitor:
    """A user with their own browser context. Records the requests and the console of its pages."""

    context: BrowserContext
    requests: list[Request] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    cdn_script: str | None = field(default_factory=stand_in_script)
    """The CDN's response for ChatKit's script; ``None`` if it can't be reached."""
    cdn_frame: str = field(default_factory=(STAND_IN / "frame.html").read_text)
    """The content of ChatKit's frame. A host outside the domain allowlist gets an empty one."""

    def open(self, url: str) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(15_000)
        page.route(f"{CDN}/**", self._respond_as_cdn)
        page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108  Playwright can't mark a built-in
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))
        page.goto(url)
        return page

    def calls(self, path: str = "/api/chatkit/sessions") -> list[Request]:
        """The page's requests to ``path``, without preflights."""
        return [request for request in self.requests if request.url.endswith(path) and request.method != "OPTIONS"]

    def calls_of(self, method: str) -> list[Request]:
        """The page's requests with ``method``."""
        return [request for request in self.requests if request.method == method]

    def _respond_as_cdn(self, route: Route) -> None:
        if route.request.url.endswith("/chatkit.js"):
            if self.cdn_script is None:
                return route.abort()
            return route.fulfill(body=self.cdn_script, content_type="text/javascript")
        return route.fulfill(body=self.cdn_frame, content_type="text/html")


def axe_violations(page: Page) -> list[str]:
    """The violations that axe finds, each with rule and target."""
    page.evaluate((FRONTEND / "node_modules/axe-core/axe.min.js").read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{rule['id']}: {node['target']}" for rule in found["violations"] for node in rule["nodes"]]


def say(page: Page, text: str) -> None:
    page.get_by_label("Message the AI").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def answer_to(page: Page, text: str) -> Any:
    """The demo's reply to ``text``, which it quotes."""
    return page.get_by_role("log").get_by_text(f"You said: “{text}”")
