"""Nobody can starve the others: greedy addresses, a hanging OpenAI, floods of feedback and of large bodies."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.applications import MakeApp, Start, served
from tests.support.chat import Caller, user_input
from tests.support.hosted import COMPLETE
from tests.support.load import callers
from tests.support.responses_api import says, streaming
from tests.support.service import Service
from tests.support.upstream import Upstream, dripping

MIB = 1024 * 1024


@contextmanager
def health_checks(service: Service) -> Iterator[list[float]]:
    """The seconds that each health check took meanwhile."""
    seconds: list[float] = []
    over = threading.Event()

    def check() -> None:
        while not over.wait(0.1):
            for path in ("/healthz", "/readyz"):
                started = time.monotonic()
                assert requests.get(service.url + path, timeout=10).status_code == 200
                seconds.append(time.monotonic() - started)

    checking = threading.Thread(target=check)
    checking.start()
    try:
        yield seconds
    finally:
        over.set()
        checking.join()


@pytest.mark.parametrize(("addresses", "refused"), [(1, 429), (200, 503)], ids=["one address", "many"])
def test_a_hanging_openai(addresses: int, refused: int) -> None:
    """Its calls hold threads. One address gets a quarter of them, and who comes when all are taken is told at once."""
    threads, workers = 32, 2
    with Upstream() as upstream:
        upstream.behaviour = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", 30, pause=1)
        variables = {"GUNICORN_THREADS": str(threads), "WEB_CONCURRENCY": str(workers)}
        with (
            Service(**{**COMPLETE, "CHATKIT_API_BASE": upstream.url}, **variables) as service,
            health_checks(service) as checks,
        ):
            outcome = asyncio.run(callers(service.port, 200, calls=1, addresses=addresses))
    assert outcome.lost == 0
    assert outcome.statuses.keys() == {503, 429} if addresses == 1 else {503}
    held = [latency for latency in outcome.latencies if latency > 5]
    at_once = [latency for latency in outcome.latencies if latency <= 5]
    assert max(held) < 12, "the contract's ten seconds, however many call, and some for the machine"
    assert max(at_once) < 3
    most = threads * workers // (4 if addresses == 1 else 1)
    assert most // 2 <= len(held) <= most, "a process may get fewer callers than the other"
    assert outcome.statuses[refused] >= len(at_once)
    assert len(checks) > 50
    assert max(checks) < 1


def test_a_flood_of_feedback(tmp_path: Path, database: str) -> None:
    """Each request names as many items as fit into it."""
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": database, "CHATKIT_MAX_REQUESTS_PER_MINUTE": "1000000"}
    with Service(**variables) as service:
        greedy, other = Caller(service.url), Caller(service.url)
        thread_id, _ = greedy.create("progress")
        usual = seconds_of(lambda: other.create("progress"))
        body = {"thread_id": thread_id, "item_ids": [f"msg_{number:032d}" for number in range(1600)], "kind": "positive"}
        statuses: Counter[int] = Counter()
        over = threading.Event()

        def flood() -> None:
            alone = Caller(service.url)
            alone.secret = greedy.secret
            while not over.is_set():
                statuses[alone.post("items.feedback", **body).status_code] += 1

        flooding = [threading.Thread(target=flood) for _ in range(16)]
        for thread in flooding:
            thread.start()
        try:
            time.sleep(0.5)
            assert max(seconds_of(lambda: other.create("progress")) for _ in range(3)) < 3 * usual + 1
        finally:
            over.set()
            for thread in flooding:
                thread.join()
    assert statuses.keys() <= {400, 429}


def seconds_of(what: Callable[[], object]) -> float:
    started = time.monotonic()
    what()
    return time.monotonic() - started


@pytest.mark.parametrize(("number", "status"), [(1, 200), (100, 200), (101, 400)])
def test_how_many_items_feedback_may_be_about(start: Start, upstream: Upstream, number: int, status: int) -> None:
    caller = start("simple")
    upstream.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    message = caller.items(thread_id).data[0]
    item_ids = [message.id, *(f"msg_{other}" for other in range(number - 1))]
    answer = caller.post("items.feedback", thread_id=thread_id, item_ids=item_ids, kind="positive")
    assert answer.status_code == status
    twice = caller.post("items.feedback", thread_id=thread_id, item_ids=[message.id] * 101, kind="positive")
    assert twice.status_code == 400


def large(kind: str) -> bytes:
    """A body of nearly 8 MiB."""
    size = 8 * MIB - 1000
    if kind == "numbers":
        inner = b"[" + b"1," * (size // 2 - 1) + b"1]"
    elif kind == "objects":
        inner = b"[" + b'{"a":1},' * (size // 8 - 1) + b"{}]"
    elif kind == "depth":
        inner = b"[" * (size // 2) + b"]" * (size // 2)
    else:
        inner = b'"' + b"x" * size + b'"'
    return b'{"type":"input.transcribe","params":{"audio_base64":' + inner + b',"mime_type":"audio/webm"}}'


@pytest.mark.parametrize("kind", ["numbers", "objects", "depth"])
def test_large_bodies_that_are_no_dictation_are_not_parsed(tmp_path: Path, kind: str) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db", WEB_CONCURRENCY="1") as service:
        caller, other = Caller(service.url), Caller(service.url)
        body = large(kind)
        seen: list[int] = []

        def send() -> None:
            for _ in range(5):
                answer = requests.post(
                    f"{service.url}/api/chatkit",
                    data=body,
                    headers={"Authorization": f"Bearer {caller.secret}", "Content-Type": "application/json"},
                    timeout=30,
                )
                seen.append(answer.status_code)

        senders = [threading.Thread(target=send) for _ in range(3)]
        with health_checks(service) as checks:
            for sender in senders:
                sender.start()
            while any(sender.is_alive() for sender in senders):
                assert seconds_of(lambda: other.post("threads.list")) < 1
        assert set(seen) <= {413, 429}
        assert 413 in seen
        assert max(checks) < 1


def test_a_dictation_of_eight_mebibytes_is_read(start: Start, upstream: Upstream) -> None:
    caller = start("simple")
    upstream.behaviour = lambda handler: handler.answer(200, {"text": "a long speech"})
    body = large("audio").replace(b"x" * 4, b"eHh4")
    headers = {"Authorization": f"Bearer {caller.secret}", "Content-Type": "application/json"}
    answer = requests.post(f"{caller.url}/api/chatkit", data=body[: 8 * MIB], headers=headers, timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"text": "a long speech"})


def test_chat_requests_are_counted_too(make_app: MakeApp) -> None:
    with served(make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_MAX_REQUESTS_PER_MINUTE="2")) as url:
        caller = Caller(url)
        statuses = [caller.post("threads.list").status_code for _ in range(22)]
    assert statuses == [200] * 20 + [429] * 2


def test_request_bodies_have_a_share_of_the_memory(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that wait at the same time one address gets a quarter."""
    monkeypatch.setattr("chatkit.web.asgi.MAX_BODIES_BYTES", 4 * MIB)
    with served(make_app(CHATKIT_BACKEND="selfhosted")) as url:
        caller = Caller(url)
        answer = caller.post("threads.create", input=user_input("x" * (MIB + 1000)))
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
        assert answer.headers["Retry-After"]
        answer = caller.post("threads.create", input=user_input("x" * (MIB // 2)))
        assert answer.json()["code"] == "request_entity_too_large", "what was held is given back"


def test_refusals_can_be_read_by_a_page_of_another_origin(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the event loop as well, which ask no view."""
    monkeypatch.setattr("chatkit.web.asgi.MAX_BODIES_BYTES", 4)
    with served(make_app(CHATKIT_BACKEND="selfhosted")) as url:
        answer = requests.post(f"{url}/api/chatkit", json={}, headers={"Origin": "http://localhost:3000"}, timeout=5)
    assert answer.status_code == 429
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("limit", ["FIRST_EVENT_SECONDS", "JSON_SECONDS"])
def test_what_never_begins_is_given_up(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """The database takes nothing for some seconds."""
    monkeypatch.setattr(f"chatkit.web.asgi.{limit}", 0.5)
    caller = start("simple")
    with sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None) as blocking:
        blocking.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        if limit == "JSON_SECONDS":
            answer = caller.post("threads.sync_custom_action", thread_id="thr_none", action={"type": "x", "payload": {}})
            assert answer.status_code == 404, "reading goes on"
            answer = caller.post("threads.delete", thread_id="thr_none")
        else:
            answer = caller.post("threads.create", input=user_input("x"))
        assert (answer.status_code, answer.json()["code"]) == (503, "service_busy")
        assert time.monotonic() - started < 3
        blocking.execute("ROLLBACK")


def test_an_error_before_the_first_event_is_logged_once(start: Start, recorder: Any) -> None:
    caller = start("simple")
    before = len(recorder.lines)
    answer = caller.post("threads.add_user_message", thread_id="thr_none", input=user_input("x"))
    assert answer.status_code == 404
    lines = [json.loads(line) for line in recorder.lines[before:]]
    access = [line for line in lines if line.get("path") == "/api/chatkit"]
    assert [(line["status"], line["request_id"]) for line in access] == [(404, answer.headers["X-Request-ID"])]
