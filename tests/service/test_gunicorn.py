"""The service with the Procfile's command: requests, malformed requests, processes, start and stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from sqlalchemy import create_engine, text

from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, delayed, issue_session
from tests.support.fake_server import Handler, dripping
from tests.support.load import Outcome, callers
from tests.support.postgres import new_postgres_database
from tests.support.service import PROJECT, DeployedService, Service, environment
from tests.support.waiting import wait_for

ORIGIN = "http://localhost:3000"


def settings(fake_openai: FakeOpenAI) -> dict[str, str]:
    return {"OPENAI_API_KEY": API_KEY, "CHATKIT_WORKFLOW_ID": WORKFLOW_ID, "CHATKIT_API_BASE": fake_openai.url}


def hosted(fake_openai: FakeOpenAI, **variables: str) -> Service:
    return Service(**settings(fake_openai), **variables)


@pytest.fixture(scope="module")
def running(shared_openai: FakeOpenAI) -> Iterator[Service]:
    """A hosted service shared by the tests that do not change it."""
    with DeployedService(**settings(shared_openai)) as service:
        yield service


def test_session_for_another_origin(running: Service) -> None:
    response = running.create_session(
        headers={"Origin": ORIGIN, "Content-Type": "application/json", "X-Request-ID": "from-the-page"}
    )
    assert response.status_code == 200
    assert response.json()["data"]["client_secret"].startswith("ek_test_")
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["X-Request-ID"] == "from-the-page"
    assert response.headers["Cache-Control"] == "no-store"


def test_own_origin_behind_a_proxy(shared_openai: FakeOpenAI) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Host": "chat.example.com"}
    with hosted(shared_openai, CHATKIT_ALLOWED_ORIGINS="https://chat.example.com") as service:
        response = service.create_session(headers={"Origin": "https://chat.example.com", **forwarded})
        assert response.status_code == 200
        assert "Secure" in response.headers["Set-Cookie"]
        assert service.create_session(headers={"Origin": "https://evil.test", **forwarded}).status_code == 403


def raw(service: Service, data: bytes) -> tuple[int, dict[str, str], Any]:
    """Send ``data`` and return the response's status, headers and JSON."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=15) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the service responded and closed before reading everything
        received = b""
        while part := sock.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body)


POST = b"POST /api/chatkit/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
CODES = {400: None, 413: "request_entity_too_large", 414: "request_uri_too_long", 431: "request_header_fields_too_large"}
MALFORMED: dict[str, tuple[bytes, int]] = {
    "header of 1 MB": (POST + b"X-Big: " + b"x" * 1_000_000 + b"\r\n\r\n", 431),
    "cookie of 1 MB": (POST + b"Cookie: chatkit_visitor=" + b"x" * 1_000_000 + b"\r\n\r\n", 431),
    "1,000 headers": (POST + b"X-More: x\r\n" * 1000 + b"\r\n", 431),
    "path of 1 MB": (b"POST /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "not http": (b"hello\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),
    "header without a name": (POST + b": x\r\n\r\n", 400),
    "invalid length": (POST + b"Content-Length: ten\r\n\r\n{}", 400),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "chunks and a length": (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "invalid chunks": (
        POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        400,
    ),
    "truncated body": (POST + b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{}", 400),
    "truncated chunks": (POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}", 400),
    "endless chunks": (
        POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n"
        + (b"400\r\n" + b" " * 1024 + b"\r\n") * 30 + b"0\r\n\r\n",
        413,
    ),
    "body of 1 MB": (POST + b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n" + b" " * 1_000_000, 413),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_request_gets_the_error_envelope(running: Service, case: str) -> None:
    data, expected = MALFORMED[case]
    status, headers, body = raw(running, data)
    assert status == expected
    assert body.keys() == {"status", "message", "code"}
    assert body["status"] == "error"
    assert body["code"] == (CODES[status] or body["code"])
    assert body["message"] == body["code"].replace("_", " ").capitalize().replace("uri", "URI")
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert running.create_session().status_code == 200


def test_chunked_body(running: Service) -> None:
    status, _, body = raw(
        running, POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    )
    assert (status, body["status"]) == (200, "success")


def test_slow_openai_times_out_after_ten_seconds_without_delaying_others() -> None:
    with FakeOpenAI() as fake_openai, hosted(fake_openai, WEB_CONCURRENCY="1") as service, ThreadPoolExecutor(21) as pool:
        fake_openai.behaviour = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", 30, pause=1)
        started = time.monotonic()
        slow = [pool.submit(service.create_session) for _ in range(20)]
        while len(fake_openai.received) < 20:
            time.sleep(0.05)
        fake_openai.behaviour = lambda handler: handler.respond(200, {"id": "cksess_1", "client_secret": "ek_test_1"})
        while not all(call.done() for call in slow):
            before = time.monotonic()
            assert service.create_session().status_code == 200
            assert requests.get(f"{service.url}/healthz", timeout=5).status_code == 200
            assert time.monotonic() - before < 5  # half of what they would wait behind a slow call
            time.sleep(0.2)
        assert time.monotonic() - started <= 15  # 10 s, and time for a busy machine
        assert min(call.result().elapsed.total_seconds() for call in slow) <= 10.4
        for call in slow:
            assert call.result().status_code == 503
            assert call.result().elapsed.total_seconds() <= 13


def test_shutdown_under_load_loses_no_request() -> None:
    """Callers keep sending, on open and on new connections, until connections are refused.

    The port can't be closed without a moment in which the kernel accepts a connection that no process will see.
    """
    with FakeOpenAI() as fake_openai, hosted(fake_openai) as service:
        fake_openai.behaviour = delayed(0.5)

        async def load_and_stop() -> Outcome:
            load = asyncio.create_task(callers(service.port, 60, seconds=20, addresses=30))
            while len(fake_openai.received) < 90:
                await asyncio.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            return await load

        outcome = asyncio.run(load_and_stop())
        assert outcome.lost == outcome.reset <= 2
        assert outcome.statuses.keys() == {200}
        assert outcome.statuses[200] == len(fake_openai.received) >= 90
        assert outcome.seconds < 10
        service.stop()
        assert service.process.returncode == 0


def test_shutdown_announces_that_connections_close() -> None:
    """To requests in progress, and with one more response on idle connections."""
    with FakeOpenAI() as fake_openai, hosted(fake_openai, WEB_CONCURRENCY="1") as service, ThreadPoolExecutor(1) as pool:
        announced = threading.Event()

        def respond_then(handler: Handler) -> None:
            announced.wait(10)
            issue_session(handler)

        fake_openai.behaviour = respond_then
        in_progress = pool.submit(service.create_session)
        wait_for(lambda: fake_openai.received)
        with requests.Session() as idle:
            assert "Connection" not in idle.get(f"{service.url}/healthz", timeout=10).headers
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: idle.get(f"{service.url}/healthz", timeout=10).headers.get("Connection") == "close")
        announced.set()
        response = in_progress.result()
        assert (response.status_code, response.headers["Connection"]) == (200, "close")


def test_killed_worker_is_replaced(running: Service) -> None:
    def workers() -> list[int]:
        return [child.pid for child in psutil.Process(running.process.pid).children()]

    before = workers()
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while len(workers()) < len(before) or before[0] in workers():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running.create_session().status_code == 200


def test_two_services_share_a_database(empty_database: str) -> None:
    """Both start at once on an empty database, and share sessions and visitors."""
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": empty_database}
    with ThreadPoolExecutor(8) as pool:
        first, second = pool.map(lambda _: Service(**variables), range(2))
        with first, second:
            cookies = requests.Session()
            responses = list(pool.map(lambda number: (first, second)[number % 2].create_session(), range(100)))
            assert {response.status_code for response in responses} == {200}
            for service in (first, second):
                assert cookies.post(f"{service.url}/api/chatkit/sessions", timeout=10).status_code == 200
    with create_engine(empty_database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM chat_sessions")).scalar_one() == 102
        users = connection.execute(text("SELECT user_id, count(*) FROM chat_sessions GROUP BY 1 HAVING count(*) > 1")).all()
        assert [count for _, count in users] == [2], "both recognise the visitor by the cookie"


def test_start_without_key_and_workflow_is_logged_once() -> None:
    with Service() as service:
        ready = requests.get(f"{service.url}/readyz", timeout=5)
        assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
        assert ready.json()["message"] == "Not ready. Missing: OPENAI_API_KEY, CHATKIT_WORKFLOW_ID"
        assert requests.get(f"{service.url}/healthz", timeout=5).json() == {"status": "success", "data": {"alive": True}}
        response = service.create_session()
        assert (response.status_code, response.json()["message"]) == (500, "OpenAI API key not configured")
    assert service.log.count("OPENAI_API_KEY, CHATKIT_WORKFLOW_ID") == 2  # at start-up and by /readyz
    assert service.log.count("sessions can't be issued") == 1


@pytest.mark.parametrize(
    ("variables", "expected_text"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is missing"),
        ({"CHATKIT_BACKEND": "elsewhere", "PORT": "99999"}, "CHATKIT_BACKEND must be hosted or selfhosted. PORT must be"),
        ({"CHATKIT_WORKFLOW_VERSION": "latest"}, "every message fails"),
        ({"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": "mysql://u:hunter2@127.0.0.1:1/db"}, "DATABASE_URL must begin with"),
    ],
)
def test_setting_error_is_one_line(variables: dict[str, str], expected_text: str) -> None:
    service = DeployedService(**variables)
    with pytest.raises(AssertionError, match="did not start"):
        service.__enter__()
    assert service.process.returncode == 1
    message = [line for line in service.log.splitlines() if line.startswith("chatkit: cannot start. ")]
    assert len(message) == 1
    assert expected_text in message[0]
    assert "Traceback" not in service.log
    assert "hunter2" not in service.log


def test_log_has_one_json_line_per_request(shared_openai: FakeOpenAI) -> None:
    with hosted(shared_openai) as service:
        session_id = service.create_session(headers={"X-Request-ID": "mine"}).json()["data"]["session_id"]
        requests.get(f"{service.url}/nothing?secret=1", timeout=5)
        raw(service, b"hello\r\n\r\n")
    lines = [json.loads(line) for line in service.stop().splitlines()]
    (issued,) = [line for line in lines if line.get("session_id")]
    assert issued.items() >= {"request_id": "mine", "session_id": session_id, "status": 200, "method": "POST"}.items()
    (not_found,) = [line for line in lines if line.get("status") == 404]
    assert (not_found["path"], "session_id" in not_found) == ("/nothing", False)
    (malformed,) = [line for line in lines if line["message"] == "400 bad_request"]
    assert re.fullmatch("[0-9a-f]{32}", malformed["request_id"])


def test_nothing_is_left_in_the_home_directory(tmp_path: Path) -> None:
    with Service(HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_hosted_does_not_import_selfhosted_packages() -> None:
    code = "import sys, app; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment(), capture_output=True, text=True, check=True, timeout=30
    ).stdout
    for costly in ("sqlalchemy", "alembic", "psycopg", "openai", "agents"):
        assert f"'{costly}'" not in loaded


def test_idle_connections_hold_no_threads_and_do_not_delay_shutdown(shared_openai: FakeOpenAI) -> None:
    """More idle connections than threads."""
    with hosted(shared_openai, GUNICORN_THREADS="8") as service:
        idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(100)]
        started = time.monotonic()
        assert service.create_session().status_code == 200
        assert time.monotonic() - started < 2
        started = time.monotonic()
        service.stop()
        assert time.monotonic() - started < 6
        for sock in idle:
            sock.close()


def test_disconnected_callers_do_not_harm_the_service(running: Service) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", running.port)) as sock:
            sock.sendall(POST + b"\r\n")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert running.create_session().status_code == 200


@pytest.fixture
def database_of_postgres(postgres: str) -> str:
    return new_postgres_database(postgres)


@pytest.mark.slow
def test_selfhosted_under_load(database_of_postgres: str) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=database_of_postgres) as service:
        statuses: list[int] = []

        def caller() -> None:
            with requests.Session() as session:
                session.headers["X-Forwarded-For"] = f"10.0.0.{threading.get_ident() % 251}"
                responses = [session.post(f"{service.url}/api/chatkit/sessions", timeout=30) for _ in range(5)]
            statuses.extend(response.status_code for response in responses)

        callers = [threading.Thread(target=caller) for _ in range(60)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert statuses == [200] * 300
