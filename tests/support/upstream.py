"""A fake of OpenAI's Sessions API over real HTTP, which can be made to fail."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

API_KEY = "sk-test-4ee0d2f7c1a94b3e8f60"
WORKFLOW_ID = "wf_test_68f0c1d2e3b4a5968778"
SECRET_PREFIX = "ek_test_"


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Handler(BaseHTTPRequestHandler):
    """One connection. ``behaviour`` responds, and the connection stays open unless it closes it, as with OpenAI."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True  # with it, the body would wait 40 ms for the acknowledgement of the headers
    server: _Server
    received: Received
    """What the call that is answered sent."""

    def setup(self) -> None:
        super().setup()
        self.server.upstream.connections += 1

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_json = headers.get("content-type") == "application/json"
        self.received = Received(self.command, self.path, headers, json.loads(raw) if is_json and raw else raw)
        self.server.upstream.received.append(self.received)
        self.server.upstream.behaviour(self)

    def do_GET(self) -> None:
        if self.path == "/v1/models":  # asked for at the start of a process, beside what a test is about
            self.server.upstream.list_models(self)
        else:  # a redirect that is followed
            self.do_POST()

    def answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        """Close the connection after this request."""
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


Behaviour = Callable[[Handler], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    upstream: Upstream

    def handle_error(self, *args: object) -> None:
        """Do not report clients that disconnect."""


class Upstream:
    """The server, its ``received`` requests and its current ``behaviour``."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.behaviour: Behaviour = mint
        self.list_models: Behaviour = answering(200, {"object": "list", "data": []})
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.upstream = self
        scheme = "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            scheme = "https"
        host = "localhost" if tls else "127.0.0.1"
        self.url = f"{scheme}://{host}:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def session(**changes: Any) -> dict[str, Any]:
    """A ``chatkit.session`` as OpenAI documents it. ``None`` omits a member."""
    whole = {
        "id": f"cksess_{secrets.token_hex(24)}",
        "object": "chatkit.session",
        "client_secret": f"{SECRET_PREFIX}{secrets.token_hex(48)}",
        "expires_at": int(time.time()) + 600,
        "workflow": {"id": WORKFLOW_ID, "version": None, "state_variables": None, "tracing": {"enabled": True}},
        "user": "anonymous:someone",
        "rate_limits": {"max_requests_per_1_minute": 10},
        "max_requests_per_1_minute": 10,
        "status": "active",
        "chatkit_configuration": {
            "automatic_thread_titling": {"enabled": True},
            "file_upload": {"enabled": False, "max_file_size": None, "max_files": None},
            "history": {"enabled": True, "recent_threads": None},
        },
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def mint(handler: Handler) -> None:
    handler.answer(200, session())


def minting(**changes: Any) -> Behaviour:
    """Respond with a session that has ``changes``."""
    return lambda handler: handler.answer(200, session(**changes))


def answering(status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> Behaviour:
    """Always respond with this status, body and headers."""
    return lambda handler: handler.answer(status, body, **headers)


def failing(status: int, code: str, **headers: str) -> Behaviour:
    """Respond with an error like OpenAI's, whose message quotes what must never be shown."""
    message = f"Workflow with id '{WORKFLOW_ID}' not found. Incorrect API key provided: {API_KEY}."
    return answering(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}, **headers)


def delayed(seconds: float) -> Behaviour:
    """Respond with a session after ``seconds``."""

    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        mint(handler)

    return behave


def dripping(data: bytes, seconds: float = 60, pause: float = 0.2) -> Behaviour:
    """Send ``data``, then a byte every ``pause`` seconds, so that no single read times out."""

    def behave(handler: Handler) -> None:
        handler.wfile.write(data)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(pause)

    return behave


def sending(data: bytes) -> Behaviour:
    """Send ``data`` as it is, and close the connection."""

    def behave(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.hang_up()

    return behave


def silent(seconds: float = 60) -> Behaviour:
    """Read the request and send nothing for ``seconds``."""

    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        handler.hang_up()

    return behave


def endless(handler: Handler) -> None:
    """Send an endless body, as fast as the client reads."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 65536)


def users(upstream: Upstream) -> list[str]:
    return [received.body["user"] for received in upstream.received]
