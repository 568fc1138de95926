"""Responses whose reader leaves, on two processes, and when a process is stopped or killed."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.fake_server import Handler
from tests.support.redis_server import Redis
from tests.support.responses_api import says, streaming
from tests.support.service import Service
from tests.support.waiting import wait_for

WHOLE = "CHATKIT_AGENT."
"""The end of the demo's response."""


def leave(caller: Caller, words: int = 5) -> tuple[str, str]:
    """Begin a response and disconnect after some words. Return the ids of its thread and its run."""
    body = {"type": "threads.create", "params": {"input": user_input("Hello")}}
    with caller.send(body, stream=True, **{"ChatKit-On-Disconnect": "continue"}) as response:
        received = b""
        for line in response.iter_lines(1):
            received += line
            words -= b"text_delta" in line
            if not words:
                break
        return received.partition(b'"id":"')[2].partition(b'"')[0].decode(), response.headers["ChatKit-Run"]


def call(caller: Caller, method: str, path: str) -> requests.Response:
    """Call the service on a new connection, which any process may get."""
    headers = {"Authorization": f"Bearer {caller.secret}"}
    return requests.request(method, f"{caller.url}/api/chatkit/{path}", headers=headers, timeout=30)


def state(caller: Caller, thread_id: str) -> str | None:
    data = call(caller, "GET", f"threads/{thread_id}/run").json()["data"]
    return str(data["status"]) if data else None


def reply(caller: Caller, thread_id: str) -> str:
    items: Any = caller.items(thread_id, order="asc").data
    return items[1].content[0].text if len(items) > 1 else ""


@pytest.fixture(params=["without Redis", "with Redis"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "without Redis":
        yield ""
        return
    with Redis() as redis:
        yield redis.url


@pytest.mark.slow
def test_stop_reaches_the_model_from_any_process(database: str, redis_url: str) -> None:
    """The model's service sees the end of each call within a second. On two processes, half of the stops come to the other."""
    ended: list[float] = []
    delays: list[float] = []
    speak = streaming(says("word " * 1000, pause=0.02))

    def behave(handler: Handler) -> None:
        try:
            speak(handler)
        except OSError:
            ended.append(time.monotonic())

    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": database, "REDIS_URL": redis_url, "WEB_CONCURRENCY": "2"}
    agent = "tests.support.agents_under_test:simple"
    with FakeOpenAI() as fake_openai:
        fake_openai.behaviour = behave
        key = {"OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": fake_openai.url, "CHATKIT_AGENT": agent}
        with Service(**variables, **key) as service:
            caller = Caller(service.url)
            for number in range(1, 9):
                thread_id, run_id = leave(caller)
                time.sleep(0.2)
                assert state(caller, thread_id) == "active"
                stopped = time.monotonic()
                assert call(caller, "DELETE", f"runs/{run_id}").status_code == 200
                wait_for(lambda number=number: len(ended) == number, 5)  # type: ignore[misc]
                delays.append(ended[-1] - stopped)
                wait_for(lambda thread_id=thread_id: state(caller, thread_id) is None)  # type: ignore[misc]
                assert reply(caller, thread_id).startswith("word word")
    assert sorted(delays)[5] < 1, "three quarters, because the machine may be busy"


def test_shutdown_lets_a_run_without_reader_finish(tmp_path: Path) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db"}
    with Service(**variables) as service:
        caller = Caller(service.url)
        thread_id, _ = leave(caller)
        service.stop()
        assert service.process.returncode == 0
    with Service(**variables, PORT=str(service.port)):
        assert reply(caller, thread_id).endswith(WHOLE)
        assert state(caller, thread_id) is None


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_marks_what_can_not_finish(tmp_path: Path, sign: signal.Signals) -> None:
    variables = {
        "CHATKIT_BACKEND": "selfhosted",
        "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db",
        "CHATKIT_STOP_SECONDS": "4",
    }
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        left, _ = leave(caller)
        stream = caller.stream("threads.create", input=user_input("Hello"))
        events = [next(stream) for _ in range(8)]
        stopped = time.monotonic()
        service.process.send_signal(sign)
        events += list(stream)
        service.stop()
        assert time.monotonic() - stopped < 6
    assert errors(events) == [("stream.error", None, True)], "ChatKit offers the retry"
    assert deltas(events)
    read = events[0].thread.id
    with Service(**variables, PORT=str(service.port)):
        for thread_id in (left, read):
            assert state(caller, thread_id) == "interrupted"
            assert reply(caller, thread_id).startswith("I am")
            message = caller.items(thread_id, order="asc").data[0]
            again = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
            assert texts(again)[0].endswith(WHOLE)
            assert state(caller, thread_id) is None
            assert reply(caller, thread_id).endswith(WHOLE)


def test_immediate_shutdown_waits_until_replies_are_saved(tmp_path: Path) -> None:
    """gunicorn looks once per second whether to end. It must not end while a reply is being saved."""
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db"}
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        stream = caller.stream("threads.create", input=user_input("Hello"))
        events = [next(stream) for _ in range(8)]
        other = sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        service.process.send_signal(signal.SIGINT)
        time.sleep(1.1)
        other.execute("ROLLBACK")
        events += list(stream)
    assert errors(events) == [("stream.error", None, True)]
    with Service(**variables, PORT=str(service.port)):
        assert state(caller, events[0].thread.id) == "interrupted"


def test_reply_is_saved_and_marked_if_the_master_has_died(tmp_path: Path) -> None:
    """The workers notice that by themselves, without a signal."""
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db"}
    with Service("tests.support.slow_demo:app", **variables, CHATKIT_STOP_SECONDS="3", WEB_CONCURRENCY="1") as service:
        caller = Caller(service.url)
        stream = caller.stream("threads.create", input=user_input("Hello"))
        events = [next(stream) for _ in range(8)]
        service.process.kill()
        events += list(stream)
    assert errors(events) == [("stream.error", None, True)]
    with Service(**variables) as service:
        caller.url = service.url
        assert state(caller, events[0].thread.id) == "interrupted"


def test_killed_process_leaves_no_thread_active(database: str) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": database, "WEB_CONCURRENCY": "2"}
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        left = [leave(caller, words=15)[0] for _ in range(2)]
        for worker in psutil.Process(service.process.pid).children():
            worker.kill()
        killed = time.monotonic()
        wait_for(lambda: service.create_session().status_code == 200, 15)
        assert state(caller, left[0]) == "active"
        # A message does not have to wait for anything but the missing heartbeats.
        assert caller.say(left[0], "widget")[-1].type == "thread.item.done"
        assert time.monotonic() - killed < 15
        assert [item.type for item in caller.items(left[0], order="asc").data] == [
            "user_message",
            "assistant_message",
            "user_message",
            "widget",
        ]
        wait_for(lambda: state(caller, left[1]) == "interrupted", 12)
        assert reply(caller, left[1]).startswith("I am the demo")
