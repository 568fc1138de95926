"""What a stop costs, and a worker that is blocked or dies: on gunicorn as it is deployed."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.responses_api import calls, says, streaming
from tests.support.service import Service
from tests.support.upstream import API_KEY, Upstream


def selfhosted(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db", **variables}


def begin(caller: Caller) -> tuple[Iterator[Any], str, list[Any]]:
    """A stream of the slow demo that has said some words: the rest of it, its thread, and the events so far."""
    stream = caller.stream("threads.create", input=user_input("hello"))
    events = [next(stream) for _ in range(20)]
    return stream, events[0].thread.id, events


def said(caller: Caller, thread_id: str) -> str:
    kept: Any = caller.thread(thread_id).items.data
    assert [item.type for item in kept] == ["user_message", "assistant_message"]
    text: str = kept[1].content[0].text
    return text


@pytest.mark.parametrize(("sign", "grace", "stop_seconds"), [(signal.SIGTERM, 10, "9"), (signal.SIGINT, 5, "25")])
def test_a_short_grace_period(tmp_path: Path, sign: signal.Signals, grace: float, stop_seconds: str) -> None:
    """Cloud Run gives 10 s after SIGTERM, Fly 5 s after SIGINT; then both kill."""
    variables = selfhosted(tmp_path, CHATKIT_STOP_SECONDS=stop_seconds)
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        stream, thread_id, events = begin(caller)
        reading = threading.Thread(target=lambda: events.extend(read_to_its_end(stream)))
        reading.start()
        started = time.monotonic()
        service.process.send_signal(sign)
        service.process.wait(grace)
        assert time.monotonic() - started < grace
        reading.join(5)
        assert "Traceback" not in service.stop()
    shown = "".join(event.update.delta for event in events if hasattr(getattr(event, "update", None), "delta"))
    assert shown
    with Service(**variables, PORT=str(service.port)):
        text = said(caller, thread_id)
        assert text.startswith(shown) or shown.startswith(text)
        assert abs(len(text) - len(shown)) < 30, "all that was shown is kept, but for a word that was on its way"
        message = caller.thread(thread_id).items.data[0]
        assert texts(list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id)))


def read_to_its_end(stream: Iterator[Any]) -> list[Any]:
    events = []
    try:
        for event in stream:
            events.append(event)  # noqa: PERF402  what came before an error counts
    except requests.RequestException:
        pass
    return events


def test_a_stream_that_ends_in_time_is_finished(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path)) as service:
        caller = Caller(service.url)
        stream, _, events = begin(caller)
        service.process.send_signal(signal.SIGTERM)
        events += list(stream)
        assert texts(events)[0].endswith("CHATKIT_AGENT.")
        service.stop()
        assert service.process.returncode == 0


def test_a_process_that_drains_is_not_ready_and_serves(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path, CHATKIT_DRAIN_SECONDS="3", WEB_CONCURRENCY="1")) as service:
        assert requests.get(f"{service.url}/readyz", timeout=2).status_code == 200
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        while time.monotonic() - started < 2.5:
            ready = requests.get(f"{service.url}/readyz", timeout=2)
            assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
            assert requests.get(f"{service.url}/healthz", timeout=2).status_code == 200
            assert service.mint().status_code == 200
            time.sleep(0.2)
        service.process.wait(10)
        with pytest.raises(requests.ConnectionError):
            service.mint()
        assert 3 < time.monotonic() - started < 9


def test_workers_whose_master_has_died_end(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path)) as service:
        workers = psutil.Process(service.process.pid).children()
        service.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []


@pytest.mark.parametrize("agent", ["exiting", "exiting_workflow"])
def test_an_agent_that_exits_ends_its_own_answer_only(tmp_path: Path, agent: str) -> None:
    with Upstream() as upstream:
        variables = selfhosted(tmp_path, WEB_CONCURRENCY="1", CHATKIT_TURN_SECONDS="5")
        key = {"OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": upstream.url}
        named = f"tests.support.agents_under_test:{agent}"
        with Service(**variables, **key, CHATKIT_AGENT=named) as service:
            upstream.behaviour = streaming(says("one two three four five six", pause=0.4), calls("exits"))
            caller, other = Caller(service.url), Caller(service.url)
            (worker,) = psutil.Process(service.process.pid).children()
            if agent == "exiting":
                stream = other.stream("threads.create", input=user_input("Count"))
                next(event for event in stream if deltas([event]))
            _, events = caller.create("Exit")
            assert len(errors(events)) == 1
            if agent == "exiting":
                assert texts(list(stream)) == ["one two three four five six"]
            assert caller.post("threads.list").status_code == 200
            assert psutil.Process(service.process.pid).children() == [worker]
        assert "SystemExit" in service.log


def test_what_blocks_the_loop_is_named_and_replaced(tmp_path: Path) -> None:
    """By an agent's function that is async and blocks all the same."""
    with Upstream() as upstream:
        variables = selfhosted(tmp_path, WEB_CONCURRENCY="1", OPENAI_API_KEY=API_KEY, CHATKIT_API_BASE=upstream.url)
        sooner = "--timeout 6"  # in place of 30
        with Service(
            **variables, CHATKIT_AGENT="tests.support.agents_under_test:blocking_the_loop", GUNICORN_CMD_ARGS=sooner
        ) as service:
            upstream.behaviour = streaming(calls("blocks_the_loop", seconds=4), says("There"))
            caller = Caller(service.url)
            (worker,) = psutil.Process(service.process.pid).children()
            assert texts(caller.create("Block")[1]) == ["There"]
            assert "time.sleep(seconds)" in service.log_so_far()
            time.sleep(1)
            assert "the event loop is running again" in service.log_so_far()
            upstream.behaviour = streaming(calls("blocks_the_loop", seconds=120))
            blocked = threading.Thread(
                target=read_to_its_end, args=(caller.stream("threads.create", input=user_input("Block")),)
            )
            blocked.start()
            blocked.join(60)
            deadline = time.monotonic() + 20
            while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert service.mint().status_code == 200
        assert len(re.findall("the event loop has been blocked for", service.log)) == 2


def test_a_worker_that_starts_during_a_stop_of_another(tmp_path: Path) -> None:
    """SIGHUP: the master starts new workers, and the old ones finish what they have begun."""
    with Service(**selfhosted(tmp_path)) as service:
        caller = Caller(service.url)
        stream, _, events = begin(caller)
        service.process.send_signal(signal.SIGHUP)
        for event in stream:
            events.append(event)
            if len(events) % 10 == 0:
                assert service.mint().status_code == 200
        assert texts(events)[0].endswith("CHATKIT_AGENT.")


def test_chats_that_wait_at_a_stop_are_told_to_come_again(tmp_path: Path) -> None:
    """They wait for a lock of the database; nothing has been sent yet."""
    with Service(**selfhosted(tmp_path, CHATKIT_STOP_SECONDS="4", WEB_CONCURRENCY="1")) as service:
        caller = Caller(service.url)
        thread_id, _ = caller.create("progress")
        with sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None) as blocking:
            blocking.execute("BEGIN IMMEDIATE")
            answers: list[requests.Response] = []
            waiting = threading.Thread(
                target=lambda: answers.append(
                    caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("x"))
                )
            )
            waiting.start()
            time.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)
            waiting.join(15)
            blocking.execute("ROLLBACK")
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "service_busy")]
        assert int(answers[0].headers["Retry-After"]) >= 1


def test_the_port_is_refused_once_it_is_closed(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path)) as service:
        service.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))
