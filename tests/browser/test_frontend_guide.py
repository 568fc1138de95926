"""The snippet of docs/frontend.md as the only page of an unstyled Next.js app with a copy of ``frontend/lib``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import Visitor, answer_to, say
from tests.support.next_app import FRONTEND, NextApp, service_port
from tests.support.service import PROJECT, Service

LAYOUT = """export default function Layout({ children }: { children: React.ReactNode }) {
  return <html lang="en"><body>{children}</body></html>
}
"""


class EmptyApp(NextApp):
    def _copy_to(self, folder: Path) -> None:
        snippet = re.search(r"```tsx\n(.*?)```", (PROJECT / "docs/frontend.md").read_text(), re.DOTALL)
        assert snippet
        shutil.copytree(FRONTEND / "lib", folder / "lib", ignore=shutil.ignore_patterns("*.test.*"))
        (folder / "app").mkdir()
        (folder / "app/page.tsx").write_text(snippet[1])
        (folder / "app/layout.tsx").write_text(LAYOUT)
        for name in ("package.json", "tsconfig.json"):
            shutil.copy(FRONTEND / name, folder / name)


@pytest.fixture(scope="module")
def app() -> Iterator[NextApp]:
    with EmptyApp("snippet", f"http://localhost:{service_port()}", domain_key="local-dev") as running:
        yield running


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_chat_fills_its_container(host: str, app: NextApp, tmp_path: Path, browser: Browser) -> None:
    """The service runs as with ``make run``, and accepts pages of localhost on any port."""
    database = f"sqlite:///{tmp_path}/chatkit.db"
    size = {"width": 900, "height": 700}
    with (
        Service(CHATKIT_ENV="development", PORT=str(service_port()), SECRET_KEY="", DATABASE_URL=database),
        browser.new_context(viewport=size) as context,  # type: ignore[arg-type]
    ):
        page = Visitor(context).open(app.url.replace("localhost", host))
        expect(page.get_by_text("Loading chat...")).not_to_be_attached()
        assert page.locator("openai-chatkit").bounding_box() == {"x": 0, "y": 0, **size}
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [900, 700]
        say(page, "Hello")
        expect(answer_to(page, "Hello")).to_be_visible()


def test_error_is_shown(app: NextApp, visitor: Visitor) -> None:
    page = visitor.open(app.url)
    expect(page.get_by_text("Error: ")).to_have_text("Error: Network connection lost. Please check your internet.")
