"""Requests that could block, flood or delay a worker."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from chatkit.limits.concurrency import SharedLeases
from chatkit.limits.rate import redis_client
from chatkit.settings import Settings
from tests.support.chat import Caller, user_input
from tests.support.fake_openai import API_KEY, FakeOpenAI, delayed
from tests.support.hosted import COMPLETE
from tests.support.redis_server import Redis
from tests.support.responses_api import calls, streaming
from tests.support.service import SECRET_KEY, Service

CHAT = b"POST /api/chatkit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def selfhosted(tmp_path: Path, **variables: str) -> dict[str, str]:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    return {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": address, "WEB_CONCURRENCY": "1", **variables}


def connect(service: Service, data: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", service.port), timeout=30)
    sock.sendall(data)
    return sock


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


def seconds_of_health_check(service: Service) -> float:
    started = time.monotonic()
    requests.get(f"{service.url}/healthz", timeout=60)
    return time.monotonic() - started


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def test_body_in_tiny_chunks_does_not_block_the_loop(tmp_path: Path) -> None:
    """Sent without a session. A one-byte chunk costs the event loop as much as a large one, so their number is limited."""
    with Service(**selfhosted(tmp_path)) as service:

        def send() -> None:
            with suppress(OSError), connect(service, CHAT + b"Transfer-Encoding: chunked\r\n\r\n") as sock:
                for _ in range(20):
                    sock.sendall(b"1\r\n \r\n" * 50_000)

        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders):
            assert seconds_of_health_check(service) < 5
        with connect(service, CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 2000) as sock:
            assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert "the event loop has been blocked" not in service.log


def test_content_length_of_thousands_of_digits(tmp_path: Path) -> None:
    """More digits than Python converts to an integer."""
    request = CHAT + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"
    with Service(**selfhosted(tmp_path)) as service, connect(service, request) as sock:
        received = sock.recv(65536)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in service.log


def test_max_requests_causes_no_pause(tmp_path: Path) -> None:
    """An idle keep-alive connection must not delay the end of the old worker, because the new one starts only then."""
    with Service(**selfhosted(tmp_path), GUNICORN_CMD_ARGS="--max-requests 20") as service, requests.Session() as idle:
        idle.get(f"{service.url}/healthz", timeout=5)
        longest = 0.0
        for _ in range(40):
            longest = max(longest, seconds_of_health_check(service))
            time.sleep(0.1)
    assert longest < 15


def test_more_connections_than_open_files(tmp_path: Path) -> None:
    """Hard limits of 1,024 or 4,096 files are common, but the service accepts 4,096 connections."""
    with Service(**selfhosted(tmp_path), TEST_MAX_FILES="120") as service, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(service))
        time.sleep(3)
        size = len(service.log_so_far())
        with connect(service, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as sock:
            sock.settimeout(10)
            received = b""
            with suppress(TimeoutError):
                received = sock.recv(65536)
    assert size < 200_000, "no log line per refused connection"
    assert received.startswith(b"HTTP/1.1 "), "refused, not left waiting"


def test_frozen_process_is_not_reported_as_blocked(tmp_path: Path) -> None:
    """Cloud Run and laptops freeze processes between requests."""
    with Service(**selfhosted(tmp_path)) as service:
        (worker,) = psutil.Process(service.process.pid).children()
        for _ in range(3):
            worker.suspend()
            time.sleep(2.6)
            worker.resume()
            time.sleep(1.1)
    assert service.log.count("the event loop has been blocked") == 0


def test_late_redis_command_leaves_no_lease() -> None:
    """Redis executes commands even after their caller timed out. Five such leases would block the user until they expire."""
    with Redis() as server:
        client = redis_client(Settings.load({"SECRET_KEY": SECRET_KEY, "REDIS_URL": server.url}))
        assert client
        leases = SharedLeases(client, "turns", each=5, seconds=240)
        with leases.held("somebody"):
            pass
        for _ in range(5):
            server.hang()
            with leases.held("somebody"):
                server.go_on()
                time.sleep(0.3)
            client.ping()
        with leases.held("somebody"):
            pass
        assert client.zcard("chatkit:turns:somebody") == 0


def test_log_line_after_a_disconnect_has_the_request_id() -> None:
    """gunicorn cancels the request 3 s after the disconnect, while the view continues in its thread."""
    with FakeOpenAI() as fake_openai:
        fake_openai.behaviour = delayed(4.5)
        with Service(**{**COMPLETE, "CHATKIT_API_BASE": fake_openai.url}, WEB_CONCURRENCY="1") as service:
            post = b"POST /api/chatkit/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nX-Request-ID: the-id\r\n\r\n"
            sock = connect(service, post)
            time.sleep(0.5)
            reset(sock)
            time.sleep(5)
    (access,) = [line for line in lines(service.log) if line.get("path") == "/api/chatkit/sessions"]
    assert access.get("request_id") == "the-id"


def test_disconnect_is_not_logged_as_a_503(tmp_path: Path) -> None:
    """Otherwise any client could trigger a 503 and a warning for the operator."""
    with Service(**selfhosted(tmp_path)) as service:
        caller = Caller(service.url)
        body = json.dumps({"type": "threads.create", "params": {"input": user_input("x")}}).encode()
        with sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None) as blocking:
            blocking.execute("BEGIN IMMEDIATE")
            authorization = f"Authorization: Bearer {caller.secret}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            sock = connect(service, CHAT + authorization + body)
            time.sleep(0.5)
            reset(sock)
            time.sleep(0.5)
            blocking.execute("ROLLBACK")
    assert [line["message"] for line in lines(service.log) if "503" in line["message"]] == []


def test_slow_steady_reader_is_not_disconnected(tmp_path: Path) -> None:
    """With a deadline of 1 s instead of 20, and 800 kB/s instead of the rate of a slow mobile connection."""
    with Service("tests.support.impatient:app", **selfhosted(tmp_path), TEST_CLIENT_SECONDS="1") as service:
        caller = Caller(service.url)
        thread_id, _ = caller.create("progress")
        for _ in range(40):
            caller.say(thread_id, "widget " + "y" * 60_000)
        body = json.dumps({"type": "items.list", "params": {"thread_id": thread_id, "limit": 100}}).encode()
        request = CHAT + f"Authorization: Bearer {caller.secret}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        whole = len(caller.post("items.list", thread_id=thread_id, limit=100).content)
        assert whole > 2_000_000
        received = 0
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            sock.connect(("127.0.0.1", service.port))
            sock.sendall(request * 3)  # the first fits into the kernel's buffers
            with suppress(OSError):
                while received < 3 * whole and (part := sock.recv(30_000)):
                    received += len(part)
                    time.sleep(len(part) / 800_000)
    assert received >= 3 * whole, f"cut after {received} bytes"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=["immediate stop", "master killed"])
def test_tool_in_a_thread_does_not_delay_shutdown(tmp_path: Path, sign: signal.Signals) -> None:
    """At exit, Python waits for all threads of a pool."""
    with FakeOpenAI() as fake_openai:
        fake_openai.behaviour = streaming(calls("sleeps", seconds=60))
        key = {"OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": fake_openai.url}
        # After the master's death only the time for open streams applies, so it is shortened.
        stopping = {"CHATKIT_STOP_SECONDS": "25" if sign is signal.SIGINT else "3"}
        with Service(
            **selfhosted(tmp_path), **key, **stopping, CHATKIT_AGENT="tests.support.agents_under_test:sleeping"
        ) as service:
            workers = psutil.Process(service.process.pid).children()
            caller = Caller(service.url)
            reading = threading.Thread(target=read, args=(caller,))
            reading.start()
            time.sleep(2)
            service.process.send_signal(sign)
            _, alive = psutil.wait_procs(workers, timeout=10)
            for worker in alive:
                worker.kill()
            reading.join()
    assert alive == []


def read(caller: Caller) -> None:
    with suppress(requests.RequestException):
        list(caller.stream("threads.create", input=user_input("sleep")))
