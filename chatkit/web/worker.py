"""gunicorn's ASGI worker with connection limits, client timeouts, and JSON errors for malformed HTTP.

It replaces gunicorn's protocol class with a subclass that uses private attributes; requirements.txt pins gunicorn, and
tests/service/test_connections.py fails if they change.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import math
import os
import resource
import signal
import sys
import termios
from collections import Counter
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.asgi.parser import ParseError
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

from chatkit.limits.concurrency import ADDRESS_DIVISOR
from chatkit.web import logs
from chatkit.web.asgi import AsgiFlask
from chatkit.web.errors import ServiceBusy, error_envelope, http_code_and_message

HEAD_SECONDS: float = 20  # for the request line and headers, from connecting or from the first byte
WRITE_SECONDS: float = 20  # for a client to read some of its response
HALF_CLOSED_SECONDS = 1  # until a client that closed its sending side is treated as disconnected
ANNOUNCE_SECONDS = 0.7  # of "Connection: close" at shutdown, before the port is closed
MAX_TINY_CHUNKS, MIN_CHUNK_BYTES = 1000, 64  # that many chunks of a body may be smaller than this on average
IDLE_SECONDS = 2  # at shutdown, for idle connections to send one more request and get "Connection: close"
INTERRUPT_SECONDS = 2  # at the end of a shutdown, for unfinished replies to be saved
QUIT_SECONDS = 3.5  # likewise on SIGINT, 5 s after which Fly.io kills by default

# Python's phrases differ between versions, and the codes are made of them.
_PHRASES = {414: "Request URI Too Long", 431: "Request Header Fields Too Large"}

log = logging.getLogger(__name__)

# The type stubs are wrong about both classes.
_Protocol: Any = ASGIProtocol
_Worker: Any = gasgi.ASGIWorker


class Protocol(_Protocol):  # type: ignore[misc]
    """A connection with timeouts for its client."""

    peer = ""
    """The client's IP address."""
    _body_chunks = _body_bytes = 0  # of the current request
    _answered: Any = None  # the latest request whose response has started
    _announces_close = False
    _head_incomplete = False
    _head_deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        if not self.worker.connect(self):
            log.warning("503 service_busy: too many connections")
            self._send_error_response(503, "too many connections")
            self._close_transport()
            return
        self._start_head_timeout()

    def data_received(self, data: bytes) -> None:
        if self._head_deadline is None and not self._request_ready.is_set():
            self._start_head_timeout()
        super().data_received(data)
        if self._request_ready.is_set():
            self._cancel("_head_deadline")
        self._head_incomplete = self._head_deadline is not None

    def _feed_callback_parser(self, data: bytes) -> bool:
        try:
            return bool(super()._feed_callback_parser(data))
        except ValueError:  # from a Content-Length with more digits than Python reads
            self._send_error_response(400, "invalid Content-Length")
            self._close_transport()
            return False

    def _on_headers_complete(self) -> Any:
        self._body_chunks = self._body_bytes = 0
        return super()._on_headers_complete()

    def _on_body(self, chunk: bytes) -> None:
        """Reject bodies in tiny chunks, each of which costs the loop as much as a large one."""
        self._body_chunks += 1
        self._body_bytes += len(chunk)
        if self._body_chunks > MAX_TINY_CHUNKS and self._body_bytes < MIN_CHUNK_BYTES * self._body_chunks:
            raise ParseError("body in tiny chunks")
        super()._on_body(chunk)

    def _start_head_timeout(self) -> None:
        self._head_deadline = self.worker.loop.call_later(HEAD_SECONDS, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        log.info("a client sent no complete request headers within %d s", HEAD_SECONDS)
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timeout()

    def _start_write_timeout(self) -> None:
        self._write_deadline = self.worker.loop.call_later(WRITE_SECONDS, self._on_write_timeout, self._unread())

    def _unread(self) -> int:
        """The bytes that the client has not read, including those in the kernel's send buffer, which holds megabytes."""
        unread: int = self.transport.get_write_buffer_size()
        with suppress(OSError):
            queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            unread += int.from_bytes(queued, sys.byteorder)
        return unread

    def resume_writing(self) -> None:
        self._cancel("_write_deadline")
        super().resume_writing()

    def _on_write_timeout(self, unread_before: int) -> None:
        if self._unread() != unread_before:
            self._start_write_timeout()
            return
        log.info("a client read nothing of its response for %d s", WRITE_SECONDS)
        self.transport.abort()

    def eof_received(self) -> bool:
        """The client closed its sending side. It may still read, so even an incomplete request gets a response."""
        receiver = self._body_receiver
        if receiver is not None and receiver._complete:
            # Most such clients are gone, so streams are ended. With a delay, because the application may still read the body.
            self.worker.loop.call_later(HALF_CLOSED_SECONDS, receiver.signal_disconnect)
            self._keepalive = 0
            return True
        if self._head_incomplete or receiver is not None:
            self._send_error_response(400, "the request ended early")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("_head_deadline")
        self._cancel("_write_deadline")
        self.worker.disconnect(self)
        super().connection_lost(exc)

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """Return whether the response announces ``Connection: close``. gunicorn asks at its start and at its end."""
        if request is not self._answered:
            self._answered, self._announces_close = request, self.worker.announces_close
        return bool(self._announces_close or super()._will_close(request, response_requires_close))

    def _close_transport(self) -> None:
        super()._close_transport()
        # gunicorn skips this if write_eof() fails because the client has reset the connection.
        if self.transport:
            self.transport.close()

    def close_if_idle(self) -> None:
        if self._awaiting_request:
            self._keepalive_timeout()

    def _cancel(self, name: str) -> None:
        if timer := getattr(self, name):
            timer.cancel()
            setattr(self, name, None)

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """Respond to malformed HTTP. ``message`` may quote the client's bytes, so it is neither sent nor logged."""
        if self._closed:
            return
        request_id = logs.new_request_id()
        phrase = _PHRASES.get(status, HTTPStatus(status).phrase)
        busy = status == HTTPStatus.SERVICE_UNAVAILABLE
        code, text = (ServiceBusy.code, ServiceBusy.message) if busy else http_code_and_message(phrase)
        log.info("%d %s", status, code, extra={"request_id": request_id})
        body = json.dumps(error_envelope(text, code)).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n"
        )
        if busy:
            head += "Retry-After: 5\r\n"
        self._safe_write(f"{head}\r\n".encode() + body)


gasgi.ASGIProtocol = Protocol  # type: ignore[attr-defined]


def _max_connections(configured: int) -> int:
    """Limit ``configured``, so that a quarter of the file descriptors is left for OpenAI, the database and Redis."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return configured if files == resource.RLIM_INFINITY else min(configured, files * 3 // 4)


class Worker(_Worker):  # type: ignore[misc]
    """gunicorn's ASGI worker. Its application is an ``AsgiFlask``."""

    asgi: AsgiFlask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: set[Protocol] = set()
        self._by_peer: Counter[str] = Counter()
        self.announces_close = False
        self._limit = 0
        self._next_file_limit_log = 0.0
        self._quit_deadline = math.inf

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()
        # asyncio would reduce the backlog to 100, and connections of a burst would then wait for seconds.
        self.loop.create_server = partial(self.loop.create_server, backlog=self.cfg.backlog)
        self.loop.set_exception_handler(self._log_loop_error)

    def init_signals(self) -> None:
        """Also handle the signals that came since the fork.

        Until here, the handler is the master's. It puts them into a queue, and nothing reads the worker's copy of that.
        """
        received = signal.getsignal(signal.SIGTERM).__self__.SIG_QUEUE  # type: ignore[union-attr]
        super().init_signals()
        while not received.empty():
            sign = received.get()
            if sign == signal.SIGTERM:
                self.loop.call_soon(self.handle_exit_signal)
            elif sign in (signal.SIGINT, signal.SIGQUIT):
                self.loop.call_soon(self.handle_quit_signal)

    def _log_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log errors of asyncio, but "too many open files" only once per second."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif loop.time() > self._next_file_limit_log:
            self._next_file_limit_log = loop.time() + 1
            log.error("no connections can be accepted: the limit of open files is reached")

    def run(self) -> None:
        """Serve until told to stop.

        A ``SystemExit`` in any task stops the event loop, and tools of agents may raise it (``argparse`` does). It must end
        only its own response, so the loop is restarted.
        """
        self._serving = self.loop.create_task(self._serve())
        try:
            while not self._serving.done():
                try:
                    self.loop.run_until_complete(self._serving)
                except (SystemExit, KeyboardInterrupt) as error:
                    if self._serving.done():
                        raise
                    log.exception("a task raised %s; only its response ends", type(error).__name__)
        except Exception:
            log.exception("the worker failed")
        finally:
            self._cleanup()
        # A normal exit would wait for the threads of tools, which can't be interrupted.
        log.info("the worker has stopped")
        logging.shutdown()
        os._exit(0)

    def connect(self, connection: Protocol) -> bool:
        """Add a connection and return whether it is within the limits. Behind a proxy there is no limit per address."""
        self.connections.add(connection)
        self._by_peer[connection.peer] += 1
        limit = self._limit = self._limit or _max_connections(self.cfg.worker_connections)
        per_address = limit if self.asgi.asgi.behind_proxy else limit // ADDRESS_DIVISOR
        return bool(len(self.connections) <= limit and self._by_peer[connection.peer] <= per_address)

    def disconnect(self, connection: Protocol) -> None:
        self.connections.discard(connection)
        self._by_peer[connection.peer] -= 1
        if not self._by_peer[connection.peer]:
            del self._by_peer[connection.peer]

    def handle_exit_signal(self) -> None:
        """Shut down (SIGTERM): report not ready while draining, then finish the open requests."""
        self.asgi.asgi.draining = True
        self.loop.call_later(self.asgi.asgi.drain_seconds, self._finish)

    def _finish(self) -> None:
        self.loop.call_later(max(0, self.asgi.asgi.stop_seconds - INTERRUPT_SECONDS), self.asgi.asgi.interrupt)
        self.loop.call_later(IDLE_SECONDS, self._close_idle)
        # gunicorn alone would also close connections whose last response promised keep-alive, and lose the next request.
        self.announces_close = True
        self.loop.call_later(ANNOUNCE_SECONDS, self._stop_accepting)

    def _stop_accepting(self) -> None:
        if self.alive and len(self.servers) == len(self.sockets):
            self._serving.cancel()  # gunicorn's main loop, which looks only once per second whether to end
        super().handle_exit_signal()

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()

    async def _shutdown(self) -> None:
        """Accept the connections in the backlog, because closing the port would reset them."""
        self.alive = False
        accepted = []
        for listener in self.sockets:
            with suppress(OSError):  # the backlog is empty
                while True:
                    accepted.append(listener.sock.accept()[0])
        for server in self.servers:
            server.close()
        self.loop.call_later(IDLE_SECONDS, self._close_idle)  # this shutdown may have another cause than a signal
        for connection in accepted:
            connection.setblocking(False)
            await self.loop.connect_accepted_socket(lambda: Protocol(self), connection)
        # gunicorn waits for connections only, and some responses are produced without one. After SIGINT it waits for nothing.
        deadline = self.loop.time() + self.cfg.graceful_timeout
        self.loop.call_later(max(0, self.cfg.graceful_timeout - INTERRUPT_SECONDS), self.asgi.asgi.interrupt)
        while self.asgi.asgi.is_busy and self.loop.time() < min(deadline, self._quit_deadline):
            await asyncio.sleep(0.1)
        await super()._shutdown()

    def handle_quit_signal(self) -> None:
        """Stop at once (SIGINT, SIGQUIT), but save replies as far as they got."""
        super().handle_quit_signal()
        self._quit_deadline = self.loop.time() + QUIT_SECONDS
        self.asgi.asgi.interrupt()
