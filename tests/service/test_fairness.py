"""One user or address can't starve the others: a hanging OpenAI, floods of feedback, large bodies."""

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
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import dripping
from tests.support.hosted import COMPLETE
from tests.support.load import callers
from tests.support.responses_api import says, streaming
from tests.support.service import Service
from tests.support.waiting import wait_for

MIB = 1024 * 1024


@contextmanager
def health_checks(service: Service) -> Iterator[list[float]]:
    """Check the health of ``service`` in the background, and yield the list of seconds that each check took."""
    seconds: list[float] = []
    over = threading.Event()

    def check() -> None:
        while not over.wait(0.1):
            for path in ("/healthz", "/readyz"):
                started = time.monotonic()
                response = requests.get(service.url + path, timeout=10)
                # /readyz gives up after 0.8 s, which counts as a slow check.
                assert response.status_code == 200 or (path, response.status_code) == ("/readyz", 503)
                seconds.append(time.monotonic() - started if response.status_code == 200 else 1.0)

    checking = threading.Thread(target=check)
    checking.start()
    try:
        yield seconds
    finally:
        over.set()
        checking.join()


@pytest.mark.parametrize(("addresses", "refused"), [(1, 429), (200, 503)], ids=["one address", "many"])
def test_hanging_openai(addresses: int, refused: int) -> None:
    """Its calls hold threads. One address gets a quarter of them. If none is free, requests are refused at once."""
    threads, workers = 32, 2
    with FakeOpenAI() as fake_openai:
        fake_openai.behaviour = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", 30, pause=1)
        variables = {"GUNICORN_THREADS": str(threads), "WEB_CONCURRENCY": str(workers)}
        with (
            Service(**{**COMPLETE, "CHATKIT_API_BASE": fake_openai.url}, **variables) as service,
            health_checks(service) as checks,
        ):
            outcome = asyncio.run(callers(service.port, 200, calls=1, addresses=addresses))
    assert outcome.lost == 0
    assert outcome.statuses.keys() == {503, 429} if addresses == 1 else {503}
    waited = [latency for latency in outcome.latencies if latency > 5]
    immediate = [latency for latency in outcome.latencies if latency <= 5]
    assert max(waited) < 12, "the contract's ten seconds, and some for the machine"
    assert sorted(immediate)[len(immediate) * 9 // 10] < 3
    most = threads * workers // (4 if addresses == 1 else 1)
    assert most // 2 <= len(waited) <= most, "requests are not spread evenly over the processes"
    assert outcome.statuses[refused] >= len(immediate)
    assert len(checks) > 50
    assert sorted(checks)[len(checks) * 9 // 10] < 1
    assert max(checks) < 5


@pytest.mark.slow
def test_flood_of_feedback(tmp_path: Path, database: str) -> None:
    """Each request names as many items as fit."""
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


def seconds_of(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


@pytest.mark.parametrize(("number", "status"), [(1, 200), (100, 200), (101, 400)])
def test_limit_of_items_in_feedback(start: Start, fake_openai: FakeOpenAI, number: int, status: int) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    message = caller.items(thread_id).data[0]
    item_ids = [message.id, *(f"msg_{other}" for other in range(number - 1))]
    response = caller.post("items.feedback", thread_id=thread_id, item_ids=item_ids, kind="positive")
    assert response.status_code == status
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
def test_large_bodies_other_than_dictation_are_not_parsed(tmp_path: Path, kind: str) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db", WEB_CONCURRENCY="1") as service:
        caller, other = Caller(service.url), Caller(service.url)
        body = large(kind)
        seen: list[int] = []

        def send() -> None:
            for _ in range(5):
                response = requests.post(
                    f"{service.url}/api/chatkit",
                    data=body,
                    headers={"Authorization": f"Bearer {caller.secret}", "Content-Type": "application/json"},
                    timeout=30,
                )
                seen.append(response.status_code)

        senders = [threading.Thread(target=send) for _ in range(3)]
        with health_checks(service) as checks:
            for sender in senders:
                sender.start()
            while any(sender.is_alive() for sender in senders):
                assert seconds_of(lambda: other.post("threads.list")) < 5
        assert set(seen) <= {413, 429}
        assert 413 in seen
        assert sorted(checks)[len(checks) * 9 // 10] < 1
        assert max(checks) < 5


def test_dictation_of_eight_mebibytes_is_accepted(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = lambda handler: handler.respond(200, {"text": "a long speech"})
    body = large("audio").replace(b"x" * 4, b"eHh4")
    headers = {"Authorization": f"Bearer {caller.secret}", "Content-Type": "application/json"}
    response = requests.post(f"{caller.url}/api/chatkit", data=body[: 8 * MIB], headers=headers, timeout=60)
    assert (response.status_code, response.json()) == (200, {"text": "a long speech"})


def test_all_chat_requests_are_counted(make_app: MakeApp) -> None:
    with served(make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_MAX_REQUESTS_PER_MINUTE="2")) as url:
        caller = Caller(url)
        statuses = [caller.post("threads.list").status_code for _ in range(22)]
    assert statuses == [200] * 20 + [429] * 2


def test_request_bodies_are_limited_per_address(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address gets a quarter of the memory for large bodies."""
    monkeypatch.setattr("chatkit.web.asgi.LARGE_BODIES_BYTES", 4 * MIB)
    with served(make_app(CHATKIT_BACKEND="selfhosted")) as url:
        caller = Caller(url)
        response = caller.post("threads.create", input=user_input("x" * (MIB + 65_536)))
        assert (response.status_code, response.json()["code"]) == (429, "too_many_requests")
        assert response.headers["Retry-After"]
        response = caller.post("threads.create", input=user_input("x" * (MIB // 2)))
        assert response.json()["code"] == "request_entity_too_large", "the share is released"


def test_refusals_have_cors_headers(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also responses of the event loop, which reach no view."""
    monkeypatch.setattr("chatkit.web.asgi.SMALL_BODIES_BYTES", 4)
    with served(make_app(CHATKIT_BACKEND="selfhosted")) as url:
        response = requests.post(f"{url}/api/chatkit", json={}, headers={"Origin": "http://localhost:3000"}, timeout=5)
    assert response.status_code == 429
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert response.headers["X-Request-ID"]


@pytest.mark.parametrize("limit", ["FIRST_EVENT_SECONDS", "JSON_SECONDS"])
def test_response_that_never_begins_times_out(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """The database accepts no writes for some seconds."""
    caller = start("simple")
    with sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None) as blocking:
        blocking.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        if limit == "JSON_SECONDS":
            response = caller.post("threads.sync_custom_action", thread_id="thr_none", action={"type": "x", "payload": {}})
            assert response.status_code == 404, "reads still work"
            monkeypatch.setattr(f"chatkit.web.asgi.{limit}", 0.5)
            response = caller.post("threads.delete", thread_id="thr_none")
        else:
            monkeypatch.setattr(f"chatkit.web.asgi.{limit}", 0.5)
            response = caller.post("threads.create", input=user_input("x"))
        assert (response.status_code, response.json()["code"]) == (503, "service_busy")
        assert time.monotonic() - started < 3
        blocking.execute("ROLLBACK")


def test_error_before_the_first_event_is_logged_once(start: Start, recorder: Any) -> None:
    caller = start("simple")
    before = len(recorder.lines)
    response = caller.post("threads.add_user_message", thread_id="thr_none", input=user_input("x"))
    assert response.status_code == 404

    def access() -> list[Any]:
        lines = [json.loads(line) for line in recorder.lines[before:]]
        return [line for line in lines if line.get("path") == "/api/chatkit"]

    wait_for(lambda: bool(access()))  # it is written after the response
    assert [(line["status"], line["request_id"]) for line in access()] == [(404, response.headers["X-Request-ID"])]
