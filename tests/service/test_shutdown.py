"""Shutdown, and workers that are blocked or die."""

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
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.responses_api import calls, says, streaming
from tests.support.service import Service
from tests.support.waiting import wait_for


def selfhosted(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db", **variables}


def begin_stream(caller: Caller) -> tuple[Iterator[Any], str, list[Any]]:
    """Start a stream of the slow demo. Return its rest, its thread id and the first events."""
    stream = caller.stream("threads.create", input=user_input("hello"))
    events = [next(stream) for _ in range(20)]
    return stream, events[0].thread.id, events


def reply(caller: Caller, thread_id: str) -> str:
    kept: Any = caller.thread(thread_id).items.data
    assert [item.type for item in kept] == ["user_message", "assistant_message"]
    text: str = kept[1].content[0].text
    return text


@pytest.mark.parametrize(("sign", "grace", "stop_seconds"), [(signal.SIGTERM, 10, "9"), (signal.SIGINT, 5, "25")])
def test_short_grace_period(tmp_path: Path, sign: signal.Signals, grace: float, stop_seconds: str) -> None:
    """Cloud Run kills 10 s after SIGTERM, Fly 5 s after SIGINT."""
    variables = selfhosted(tmp_path, CHATKIT_STOP_SECONDS=stop_seconds)
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        stream, thread_id, events = begin_stream(caller)
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
        text = reply(caller, thread_id)
        assert text.startswith(shown) or shown.startswith(text)
        assert abs(len(text) - len(shown)) < 30, "what was shown is stored, except for a word in transit"
        message = caller.thread(thread_id).items.data[0]
        assert texts(list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id)))


def read_to_its_end(stream: Iterator[Any]) -> list[Any]:
    events = []
    try:
        for event in stream:
            events.append(event)  # noqa: PERF402  events before an error count
    except requests.RequestException:
        pass
    return events


def test_stream_that_ends_in_time_is_finished(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path)) as service:
        caller = Caller(service.url)
        stream, _, events = begin_stream(caller)
        service.process.send_signal(signal.SIGTERM)
        events += list(stream)
        assert texts(events)[0].endswith("CHATKIT_AGENT.")
        service.stop()
        assert service.process.returncode == 0


def test_draining_process_is_not_ready_and_serves(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path, CHATKIT_DRAIN_SECONDS="5", WEB_CONCURRENCY="1")) as service:
        assert requests.get(f"{service.url}/readyz", timeout=5).status_code == 200
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 503, 3)
        while time.monotonic() - started < 4:
            ready = requests.get(f"{service.url}/readyz", timeout=5)
            assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
            assert requests.get(f"{service.url}/healthz", timeout=5).status_code == 200
            assert service.create_session().status_code == 200
            time.sleep(0.2)
        service.process.wait(10)
        with pytest.raises(requests.ConnectionError):
            service.create_session()
        assert 5 < time.monotonic() - started < 12


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_while_a_worker_starts(sign: signal.Signals) -> None:
    """The worker does not handle signals yet, and must not be waited for until it is killed."""
    service = Service("tests.support.slow_boot:app", WEB_CONCURRENCY="1")
    wait_for(lambda: "Booting worker" in service.log_so_far(), 30)
    started = time.monotonic()
    service.stop(sign)
    assert time.monotonic() - started < 10
    assert "the worker has stopped" in service.log


def test_workers_end_after_their_master(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path)) as service:
        workers = psutil.Process(service.process.pid).children()
        service.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []


@pytest.mark.parametrize("agent", ["exiting", "exiting_workflow"])
def test_agent_that_exits_ends_only_its_turn(tmp_path: Path, agent: str) -> None:
    with FakeOpenAI() as fake_openai:
        variables = selfhosted(tmp_path, WEB_CONCURRENCY="1", CHATKIT_TURN_SECONDS="5")
        key = {"OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": fake_openai.url}
        named = f"tests.support.agents_under_test:{agent}"
        with Service(**variables, **key, CHATKIT_AGENT=named) as service:
            fake_openai.behaviour = streaming(says("one two three four five six", pause=0.4), calls("exits"))
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


def test_blocked_event_loop_is_logged_and_its_worker_replaced(tmp_path: Path) -> None:
    """An agent's async function that blocks."""
    with FakeOpenAI() as fake_openai:
        variables = selfhosted(tmp_path, WEB_CONCURRENCY="1", OPENAI_API_KEY=API_KEY, CHATKIT_API_BASE=fake_openai.url)
        sooner = "--timeout 8"  # instead of 30
        with Service(
            **variables, CHATKIT_AGENT="tests.support.agents_under_test:blocking_the_loop", GUNICORN_CMD_ARGS=sooner
        ) as service:
            fake_openai.behaviour = streaming(calls("blocks_the_loop", seconds=4), says("There"))
            caller = Caller(service.url)
            (worker,) = psutil.Process(service.process.pid).children()
            assert texts(caller.create("Block")[1]) == ["There"]
            assert "time.sleep(seconds)" in service.log_so_far()
            wait_for(lambda: "the event loop is running again" in service.log_so_far(), 10)
            fake_openai.behaviour = streaming(calls("blocks_the_loop", seconds=120))
            blocked = threading.Thread(
                target=read_to_its_end, args=(caller.stream("threads.create", input=user_input("Block")),)
            )
            blocked.start()
            blocked.join(60)
            worker.wait(20)
            assert service.create_session().status_code == 200
        assert len(re.findall("the event loop has been blocked for", service.log)) == 2


def test_worker_starts_while_another_shuts_down(tmp_path: Path) -> None:
    """On SIGHUP the master starts new workers, and the old ones finish their requests."""
    with Service(**selfhosted(tmp_path)) as service:
        caller = Caller(service.url)
        stream, _, events = begin_stream(caller)
        service.process.send_signal(signal.SIGHUP)
        for event in stream:
            events.append(event)
            if len(events) % 10 == 0:
                assert service.create_session().status_code == 200
        assert texts(events)[0].endswith("CHATKIT_AGENT.")


def test_waiting_chats_get_a_503_on_shutdown(tmp_path: Path) -> None:
    """They wait for a database lock, and no byte of the response has been sent."""
    with Service(**selfhosted(tmp_path, CHATKIT_STOP_SECONDS="4", WEB_CONCURRENCY="1")) as service:
        caller = Caller(service.url)
        thread_id, _ = caller.create("progress")
        with sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None) as blocking:
            blocking.execute("BEGIN IMMEDIATE")
            responses: list[requests.Response] = []
            waiting = threading.Thread(
                target=lambda: responses.append(
                    caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("x"))
                )
            )
            waiting.start()
            time.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)
            waiting.join(15)
            blocking.execute("ROLLBACK")
        assert [(response.status_code, response.json()["code"]) for response in responses] == [(503, "service_busy")]
        assert int(responses[0].headers["Retry-After"]) >= 1


def test_connection_of_a_stream_takes_one_more_request(tmp_path: Path) -> None:
    """The headers of its response promised to keep the connection open."""
    with FakeOpenAI() as fake_openai:
        variables = selfhosted(tmp_path, WEB_CONCURRENCY="1", OPENAI_API_KEY=API_KEY, CHATKIT_API_BASE=fake_openai.url)
        with Service(**variables, CHATKIT_AGENT="tests.support.agents_under_test:sleeping") as service:
            announced = threading.Event()
            speak = streaming(says("Hello"))
            fake_openai.behaviour = lambda handler: speak(handler) if announced.wait(10) else None
            caller = Caller(service.url)
            stream = caller.stream("threads.create", input=user_input("Hello"))
            next(stream)
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: requests.get(f"{service.url}/healthz", timeout=5).headers.get("Connection") == "close")
            announced.set()
            assert texts(list(stream)) == ["Hello"]
            response = caller.post("threads.list")
            assert (response.status_code, response.headers["Connection"]) == (200, "close")
            pools: Any = caller.http.get_adapter(service.url).poolmanager.pools  # type: ignore[attr-defined]
            assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118  it can't be iterated over


def test_connections_are_refused_after_shutdown(tmp_path: Path) -> None:
    with Service(**selfhosted(tmp_path)) as service:
        service.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))
