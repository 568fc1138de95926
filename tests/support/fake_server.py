"""A server over real HTTP whose behaviour a test decides, for what the service calls."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


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
    """The current request."""

    def setup(self) -> None:
        super().setup()
        self.server.fake.connections += 1

    def do_POST(self) -> None:
        self.server.fake.handle(self)

    def do_GET(self) -> None:
        self.server.fake.handle(self)

    def receive(self) -> Received:
        """Read the request."""
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_json = headers.get("content-type") == "application/json"
        self.received = Received(self.command, self.path, headers, json.loads(raw) if is_json and raw else raw)
        return self.received

    def respond(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
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
    fake: FakeServer

    def handle_error(self, *args: object) -> None:
        """Do not report clients that disconnect."""


class FakeServer:
    """The server, its ``received`` requests and its current ``behaviour``."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.behaviour: Behaviour = responding(200, {})
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.fake = self
        scheme = "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            scheme = "https"
        host = "localhost" if tls else "127.0.0.1"
        self.url = f"{scheme}://{host}:{self._server.server_port}"

    def handle(self, handler: Handler) -> None:
        self.received.append(handler.receive())
        self.behaviour(handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def responding(status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> Behaviour:
    """Always respond with this status, body and headers."""
    return lambda handler: handler.respond(status, body, **headers)


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
