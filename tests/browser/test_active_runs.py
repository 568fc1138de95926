"""A response goes on while the host page is reloaded or its connection is cut, and stops when the user says so."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import Visitor, say
from tests.support.cutting_proxy import CuttingProxy
from tests.support.redis_server import Redis
from tests.support.service import Service
from tests.support.waiting import wait_for

WHOLE = "CHATKIT_AGENT."
"""The end of the demo's response."""


@contextmanager
def development(folder: Path, app: str = "", **variables: str) -> Iterator[Service]:
    database = f"sqlite:///{folder}/chatkit.db"
    with Service(app, CHATKIT_ENV="development", CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, **variables) as service:
        yield service


def stored(folder: Path, thread_id: str) -> list[str]:
    """The texts of the visible items."""
    with sqlite3.connect(folder / "chatkit.db") as connection:
        query = "SELECT data FROM chat_items WHERE thread_id = ? ORDER BY position"
        items = [json.loads(data) for (data,) in connection.execute(query, [thread_id])]
    return ["".join(part["text"] for part in item["content"]) for item in items if isinstance(item["content"], list)]


def shown(page: Page) -> list[str]:
    lines = "document.querySelector('openai-chatkit')?.shadowRoot.querySelectorAll('.log p') ?? []"
    texts: list[str] = page.evaluate(f"[...{lines}].map((line) => line.textContent)")
    return texts


def thread(page: Page) -> str:
    thread_id: str = page.evaluate("localStorage['chatkit.thread'] ?? ''")
    return thread_id


def begin(page: Page, said: str, characters: int) -> None:
    """Send a message in a new conversation, and wait until so much of the response is shown."""
    page.evaluate("document.querySelector('openai-chatkit').setThreadId(null)")
    say(page, said)
    wait_for(lambda: len(texts := shown(page)) == 2 and texts[0] == said and len(texts[1]) >= characters, 15)


def run_notice(page: Page) -> Any:
    return page.get_by_role("status", name="Response").locator("#run-message")


@pytest.mark.parametrize(("with_redis", "count"), [(False, 20), (True, 6)], ids=["without Redis", "with Redis"])
def test_reload_or_cut_connection_at_many_positions(tmp_path: Path, visitor: Visitor, with_redis: bool, count: int) -> None:
    """On two processes. In the end, what is shown is what is stored, once."""
    positions = random.Random(14)
    interrupted = 0
    with ExitStack() as running:
        redis = {"REDIS_URL": running.enter_context(Redis()).url} if with_redis else {}
        service = running.enter_context(development(tmp_path, WEB_CONCURRENCY="2", **redis))
        proxy = running.enter_context(CuttingProxy(service.port))
        page = visitor.open(f"http://localhost:{proxy.port}")
        expect(page.get_by_text("ready, send a message")).to_be_visible()
        for number in range(count):
            said = f"Number {number}"
            begin(page, said, positions.randrange(1, 240))
            thread_id = thread(page)
            before = len(stored(tmp_path, thread_id)[-1]) if len(stored(tmp_path, thread_id)) > 1 else 0
            if number % 2:
                page.reload()
            else:
                proxy.cut()
            wait_for(lambda: "".join(shown(page)).endswith(WHOLE), 15)
            wait_for(lambda: run_notice(page).inner_text() == "")
            texts = stored(tmp_path, thread_id)
            assert (len(texts), texts[0], texts[1].endswith(WHOLE)) == (2, said, True)
            interrupted += len(texts[1]) > before
            assert shown(page) == texts
            assert not page.get_by_role("alert").is_visible()
    assert interrupted > count // 2, "on a busy machine, some responses may be complete before that"
    assert not [line for line in visitor.console if line.startswith("uncaught")]


def test_text_grows_after_a_reload(tmp_path: Path, visitor: Visitor) -> None:
    with development(tmp_path, "tests.support.slow_demo:app") as service:
        page = visitor.open(service.url.replace("127.0.0.1", "localhost"))
        begin(page, "Slowly", 20)
        page.reload()
        expect(run_notice(page)).to_have_text("A response is being written…")
        lengths = set()
        while run_notice(page).inner_text():
            lengths.add(len("".join(shown(page))))
            time.sleep(0.2)
        assert len(lengths) >= 3
        assert shown(page) == stored(tmp_path, thread(page))
        assert shown(page)[1].endswith(WHOLE)


def test_stop_button_stops_the_run(tmp_path: Path, visitor: Visitor) -> None:
    with development(tmp_path, "tests.support.slow_demo:app") as service:
        page = visitor.open(service.url.replace("127.0.0.1", "localhost"))
        begin(page, "Stop!", 20)
        with page.expect_request(lambda request: request.method == "DELETE"):
            page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
        wait_for(lambda: len(stored(tmp_path, thread(page))) == 2)
        time.sleep(2)
        kept = stored(tmp_path, thread(page))[1]
        assert not kept.endswith(WHOLE)
        assert kept.startswith(shown(page)[1])
        assert len(kept) - len(shown(page)[1]) < 120
        assert not page.get_by_role("alert").is_visible()
        page.reload()
        expect(page.get_by_role("log").locator(".assistant")).to_have_text(kept)
        assert run_notice(page).inner_text() == ""


def test_stop_button_of_the_page_after_a_reload(tmp_path: Path, visitor: Visitor) -> None:
    with development(tmp_path, "tests.support.slow_demo:app") as service:
        page = visitor.open(service.url.replace("127.0.0.1", "localhost"))
        begin(page, "Stop!", 20)
        page.reload()
        stop = page.get_by_role("status", name="Response").get_by_role("button", name="Stop")
        stop.click()
        expect(stop).to_be_hidden()
        time.sleep(2)
        kept = stored(tmp_path, thread(page))
        assert len(kept) == 2
        assert not kept[1].endswith(WHOLE)
        expect(run_notice(page)).to_have_text("", timeout=15_000)
        assert shown(page) == kept
        assert len(visitor.calls_of("DELETE")) == 1
        time.sleep(1)
        assert stored(tmp_path, thread(page)) == kept


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_page_offers_to_repeat_what_a_process_could_not_finish(tmp_path: Path, visitor: Visitor, sign: signal.Signals) -> None:
    slowly = "tests.support.slow_demo:app"
    with development(tmp_path, slowly, CHATKIT_STOP_SECONDS="3") as service:
        page = visitor.open(service.url.replace("127.0.0.1", "localhost"))
        begin(page, "Lost?", 20)
        if sign == signal.SIGKILL:
            killed = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children()]
            for process in killed:
                process.kill()
            psutil.wait_procs(killed, 10)  # until then, the port is in use
            service.process.wait(10)
        else:
            service.stop(sign)
    with development(tmp_path, PORT=str(service.port)):
        if sign == signal.SIGTERM:
            expect(page.get_by_role("alert")).to_be_visible()  # the error event with which ChatKit offers the retry
            page.reload()
        expect(run_notice(page)).to_contain_text("The response was interrupted.", timeout=30_000)
        wait_for(lambda: shown(page) == stored(tmp_path, thread(page)))  # the notice comes first
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("log").locator(".assistant")).to_contain_text(WHOLE, timeout=30_000)
        expect(run_notice(page)).to_have_text("")
        assert shown(page) == stored(tmp_path, thread(page))
        assert len(shown(page)) == 2
