"""Clients that are silent, slow, malformed or disconnect at any time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.chat import Caller, user_input
from tests.support.service import Service
from tests.support.waiting import wait_for

POST = b"POST /api/chatkit/sessions HTTP/1.1\r\nHost: x\r\n"
JSON = b"Content-Type: application/json\r\n"
WAIT = 1.0  # instead of 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    address = f"sqlite:///{tmp_path_factory.mktemp('connections')}/chatkit.db"
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": address, "WEB_CONCURRENCY": "1"}
    with Service(
        "tests.support.impatient:app",
        **variables,
        TEST_CLIENT_SECONDS=str(WAIT),
        TEST_BODY_SECONDS="3",
        CHATKIT_STOP_SECONDS="3",
    ) as running:
        yield running
    assert "Traceback" not in running.log


def connect(service: Service, data: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    sock.sendall(data)
    return sock


def read(sock: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    try:
        while part := sock.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def responses(received: bytes) -> list[tuple[int, Any]]:
    """The statuses and JSON bodies in ``received``."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append((int(head[9:12]), json.loads(rest[:length]) if length else None))
        received = rest[length:]
    return found


def assert_serving(service: Service) -> None:
    assert service.create_session().status_code == 200
    assert requests.get(f"{service.url}/healthz", timeout=3).status_code == 200


@pytest.mark.parametrize(
    "sent", [b"", b"P", POST, POST + b"X-Slow: "], ids=["nothing", "one letter", "half the headers", "half a header"]
)
def test_incomplete_headers_time_out(service: Service, sent: bytes) -> None:
    started = time.monotonic()
    with connect(service, sent) as sock:
        assert read(sock) == b""
    assert WAIT - 0.1 <= time.monotonic() - started < WAIT + 5
    assert_serving(service)


def test_slow_headers_time_out(service: Service) -> None:
    started = time.monotonic()
    with connect(service, POST) as sock:
        try:
            while time.monotonic() - started < WAIT + 6:
                sock.sendall(b"X-Drip: 1\r\n")
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - started < WAIT + 5


def test_incomplete_body_times_out(service: Service) -> None:
    with connect(service, POST + JSON + b"Content-Length: 9\r\n\r\n{") as sock:
        ((status, body),) = responses(read(sock))
    assert (status, body["code"]) == (408, "request_timeout")
    assert_serving(service)


def test_slow_body_times_out(service: Service) -> None:
    started = time.monotonic()
    with connect(service, POST + JSON + b"Content-Length: 1000\r\n\r\n") as sock:
        sending = threading.Thread(target=send_slowly, args=(sock,))
        sending.start()
        ((status, body),) = responses(read(sock))
        assert (status, body["code"]) == (408, "request_timeout")
        assert 2.5 < time.monotonic() - started < 8
        sending.join()


def send_slowly(sock: socket.socket) -> None:
    try:
        for _ in range(100):
            sock.sendall(b" ")
            time.sleep(0.1)
    except OSError:
        pass


def test_keep_alive_connection_may_be_idle_for_longer(service: Service) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(service, request) as sock:
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(2 * WAIT)
        sock.sendall(request)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_connection_that_reads_nothing_is_closed(service: Service) -> None:
    caller = Caller(service.url)
    thread_id, _ = caller.create("progress " + "x" * 40_000)
    body = json.dumps({"type": "items.list", "params": {"thread_id": thread_id}})
    head = (
        f"POST /api/chatkit HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.secret}\r\nContent-Type: application/json\r\n"
    )
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    worker = psutil.Process(service.process.pid).children()[0]
    with connect(service) as sock:
        port = sock.getsockname()[1]
        sending = threading.Thread(target=send_all, args=(sock, request * 400))  # 16 MB of responses
        sending.start()
        deadline = time.monotonic() + 20
        while any(connection.raddr and connection.raddr.port == port for connection in worker.net_connections()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        sending.join()
    assert_serving(service)
    assert caller.thread(thread_id).id == thread_id


def send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "closed"])
def test_pipelined_requests_are_answered_in_order(service: Service, kept: bool) -> None:
    one = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + (b"" if kept else b"Connection: close\r\n") + b"\r\n"
    with connect(service, one + two) as sock:
        received = b""
        while received.count(b"HTTP/1.1 ") < 2 or not received.endswith(b"}\n"):
            received += sock.recv(65536)
        assert [status for status, _ in responses(received)] == [404, 200]


def test_http_1_0(service: Service) -> None:
    with connect(service, b"GET /healthz HTTP/1.0\r\n\r\n") as sock:
        ((status, body),) = responses(read(sock))
    assert (status, body["status"]) == (200, "success")


def test_stream_over_http_1_0(service: Service) -> None:
    """Without chunked encoding: the end of the connection ends the stream."""
    caller = Caller(service.url)
    body = json.dumps({"type": "threads.create", "params": {"input": user_input("progress")}})
    head = f"POST /api/chatkit HTTP/1.0\r\nAuthorization: Bearer {caller.secret}\r\nContent-Type: application/json\r\n"
    with connect(service, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()) as sock:
        received = read(sock)
    assert b"transfer-encoding" not in received.lower()
    assert b"thread.item.done" in received


@pytest.mark.parametrize(("length", "expected"), [(2, [100, 200]), (100_000, [413])])
def test_expect_100_continue(service: Service, length: int, expected: list[int]) -> None:
    """A body that is too large is refused before it is sent."""
    with connect(service, POST + JSON + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length) as sock:
        received = sock.recv(65536)
        statuses = [int(received[9:12])]
        if statuses == [100]:
            sock.sendall(b"{}")
            statuses.append(int(sock.recv(65536)[9:12]))
    assert statuses == expected


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"PUT", b"TRACE", b"CONNECT", b"BREW"])
@pytest.mark.parametrize("path", [b"/healthz", b"/api/chatkit", b"/", b"*", b"//x", b"/%ff%00", b"http://x/healthz"])
def test_other_methods_and_paths(service: Service, method: bytes, path: bytes) -> None:
    with connect(service, method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as sock:
        received = read(sock)
    assert received.startswith(b"HTTP/1.1 ")
    assert int(received[9:12]) in (200, 204, 400, 404, 405)
    assert_serving(service)


def test_websocket_is_refused(service: Service) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with connect(service, b"GET /api/chatkit HTTP/1.1\r\nHost: x\r\n" + upgrade + key) as sock:
        assert read(sock).startswith(b"HTTP/1.1 403")
    assert_serving(service)


STAGES = {
    "before the request": b"",
    "in the headers": POST,
    "after the headers": POST + JSON + b"Content-Length: 2\r\n\r\n",
    "in the body": POST + JSON + b"Content-Length: 2\r\n\r\n{",
    "after the body": POST + JSON + b"Content-Length: 2\r\n\r\n{}",
    "in a chunk": POST + JSON + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
}


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("stage", STAGES)
def test_client_disconnects(service: Service, stage: str, reset: bool) -> None:
    with ExitStack() as stack:
        for _ in range(10):
            sock = stack.enter_context(connect(service, STAGES[stage]))
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert_serving(service)


ABANDONED = {
    "health check": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "health check that closes": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "unknown path over HTTP/1.0": b"GET /nothing HTTP/1.0\r\n\r\n",
    "session": POST + JSON + b"Content-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("request_bytes", ABANDONED.values(), ids=ABANDONED)
def test_client_that_does_not_wait_leaves_no_connection(service: Service, request_bytes: bytes) -> None:
    (worker,) = psutil.Process(service.process.pid).children()

    def sockets() -> int:
        return worker.num_fds() - len(worker.open_files())  # without those of SQLite, which may open more of them

    open_before = sockets()
    for _ in range(20):
        connect(service, request_bytes).close()
    wait_for(lambda: sockets() <= open_before + 2)
    assert_serving(service)


def test_idle_connections_do_not_delay_others(service: Service) -> None:
    """With many more connections than threads."""
    with ExitStack() as stack:
        for number in range(600):
            stack.enter_context(connect(service, POST if number % 2 else b""))
        for _ in range(10):
            started = time.monotonic()
            assert_serving(service)
            assert time.monotonic() - started < 3


def test_connections_per_address_are_limited(tmp_path: Path) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db", "WEB_CONCURRENCY": "1"}
    arguments = {"GUNICORN_CMD_ARGS": "--worker-connections 40"}
    with Service(**variables, **arguments, PROXY_HOPS="0") as service, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connect(service))
        ((status, body),) = responses(read(stack.enter_context(connect(service))))
        assert (status, body["code"]) == (503, "service_busy")
        with socket.socket() as other:
            other.bind(("127.0.0.2", 0))
            other.connect(("127.0.0.1", service.port))
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert responses(read(other))[0][0] == 200
    with Service(**variables, **arguments, PROXY_HOPS="1") as service, ExitStack() as stack:
        for _ in range(40):  # behind a proxy, all have its address
            stack.enter_context(connect(service))
        time.sleep(0.3)
        assert responses(read(connect(service)))[0][0] == 503


def test_burst_of_connections_fits_the_backlog(tmp_path: Path) -> None:
    """More than asyncio's default backlog of 100, while the event loop is busy."""
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db", "WEB_CONCURRENCY": "1"}
    with Service(**variables) as service, ExitStack() as stack:
        (worker,) = psutil.Process(service.process.pid).children()
        worker.suspend()
        try:
            started = time.monotonic()
            for _ in range(400):
                stack.enter_context(connect(service))
            assert time.monotonic() - started < 10, "SYNs are not retransmitted, which takes a second for each"
        finally:
            worker.resume()
        assert_serving(service)
