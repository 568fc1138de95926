"""gunicorn's ASGI worker with bounds for connections, and JSON errors for malformed HTTP.

It replaces gunicorn's protocol class by a subclass and uses some of its private attributes; requirements.txt pins gunicorn, and
tests/test_connections.py fails if they change.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import resource
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

from chatkit.limits.concurrency import PART
from chatkit.web import logs
from chatkit.web.asgi import AsgiFlask
from chatkit.web.errors import error_envelope

HEAD_SECONDS: float = 20  # for a client to send the whole head of a request, once it has connected or begun
WRITE_SECONDS: float = 20  # for a client that does not read to take some of what waits for it
HALF_CLOSED_SECONDS = 1  # until a client that sends no more is taken to have left
ANNOUNCE_SECONDS = 0.7  # at shutdown, before the port is closed
MAX_TINY_CHUNKS, MIN_CHUNK_BYTES = 1000, 64  # so many chunks of a body may be smaller than that on average
IDLE_SECONDS = 2  # at shutdown, for kept connections to send one more request and be told that they are closed
INTERRUPT_SECONDS = 2  # before the end of a stop, for what is then still being answered to be kept

# Python's own phrases differ from version to version, and the codes are to be stable.
_PHRASES = {414: "Request URI Too Long", 431: "Request Header Fields Too Large"}

log = logging.getLogger(__name__)

# The type stubs know neither class as it is.
_Protocol: Any = ASGIProtocol
_Worker: Any = gasgi.ASGIWorker


class Protocol(_Protocol):  # type: ignore[misc]
    """One connection. It is closed when its client keeps it waiting for too long."""

    peer = ""
    """The address that it comes from."""
    _pieces = _piece_bytes = 0  # of the body that is being read
    _begun = False  # a head, of which not all has come
    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        if not self.worker.connect(self):
            log.warning("503 service_busy: too many connections")
            self._send_error_response(503, "too many connections")
            self._close_transport()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._request_ready.is_set():
            self._expect_head()
        super().data_received(data)
        if self._request_ready.is_set():
            self._cancel("_deadline")
        self._begun = self._deadline is not None

    def _feed_callback_parser(self, data: bytes) -> bool:
        try:
            return bool(super()._feed_callback_parser(data))
        except ValueError:  # of a Content-Length with more digits than Python reads
            self._send_error_response(400, "an unreadable head")
            self._close_transport()
            return False

    def _on_headers_complete(self) -> Any:
        self._pieces = self._piece_bytes = 0
        return super()._on_headers_complete()

    def _on_body(self, chunk: bytes) -> None:
        """Refuse a body in tiny chunks: each costs the loop as much as a large one."""
        self._pieces += 1
        self._piece_bytes += len(chunk)
        if self._pieces > MAX_TINY_CHUNKS and self._piece_bytes < MIN_CHUNK_BYTES * self._pieces:
            raise ParseError("a body in tiny chunks")
        super()._on_body(chunk)

    def _expect_head(self) -> None:
        self._deadline = self.worker.loop.call_later(HEAD_SECONDS, self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        log.info("a client sent no request in %d s", HEAD_SECONDS)
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def _expect_reading(self) -> None:
        self._write_deadline = self.worker.loop.call_later(WRITE_SECONDS, self._give_up_writing, self._unread())

    def _unread(self) -> int:
        """The bytes that the client has not taken yet, here and in the system's buffer, which holds megabytes."""
        unread: int = self.transport.get_write_buffer_size()
        with suppress(OSError):
            queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            unread += int.from_bytes(queued, sys.byteorder)
        return unread

    def resume_writing(self) -> None:
        self._cancel("_write_deadline")
        super().resume_writing()

    def _give_up_writing(self, waiting: int) -> None:
        if self._unread() != waiting:  # it has taken some
            self._expect_reading()
            return
        log.info("a client took nothing of its response for %d s", WRITE_SECONDS)
        self.transport.abort()

    def eof_received(self) -> bool:
        """The client sends no more. It may still read, so it gets a response, even to an incomplete request."""
        receiver = self._body_receiver
        if receiver is not None and receiver._complete:
            # Most have left, and what lasts is ended. Not at once, because the application may still be reading the body.
            self.worker.loop.call_later(HALF_CLOSED_SECONDS, receiver.signal_disconnect)
            self._keepalive = 0
            return True
        if self._begun or receiver is not None:
            self._send_error_response(400, "the request ended early")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("_deadline")
        self._cancel("_write_deadline")
        self.worker.disconnect(self)
        super().connection_lost(exc)

    def close_after_next_response(self) -> None:
        """Keep the connection no longer than for one more request, unless one is being served."""
        if self._awaiting_request:
            self._keepalive = 0

    def close_if_idle(self) -> None:
        """Close a connection that waits for a request."""
        if self._awaiting_request:
            self._keepalive_timeout()

    def _cancel(self, name: str) -> None:
        if timer := getattr(self, name):
            timer.cancel()
            setattr(self, name, None)

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        """Answer what is no request. ``message`` quotes what was sent, so it is neither sent nor logged."""
        if self._closed:
            return
        request_id = logs.new_request_id()
        phrase = _PHRASES.get(status, HTTPStatus(status).phrase)
        code = "service_busy" if status == HTTPStatus.SERVICE_UNAVAILABLE else phrase.lower().replace(" ", "_")
        log.info("%d %s", status, code, extra={"request_id": request_id})
        body = json.dumps(error_envelope(phrase.capitalize(), code)).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n"
        )
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            head += "Retry-After: 5\r\n"
        self._safe_write(f"{head}\r\n".encode() + body)


gasgi.ASGIProtocol = Protocol  # type: ignore[attr-defined]


def _allowed_connections(wanted: int) -> int:
    """As many as are wanted, but leave a quarter of the files for OpenAI, the database and Redis."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else min(wanted, files * 3 // 4)


class Worker(_Worker):  # type: ignore[misc]
    """gunicorn's ASGI worker. Its application is an ``AsgiFlask``."""

    asgi: AsgiFlask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: set[Protocol] = set()
        self._of_peer: Counter[str] = Counter()
        self._most = 0
        self._next_notice = 0.0

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()
        # asyncio would shorten the queue of connections to accept to 100, and a burst then waits for seconds.
        self.loop.create_server = partial(self.loop.create_server, backlog=self.cfg.backlog)
        self.loop.set_exception_handler(self._log_loop_error)

    def _log_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what asyncio reports; that no more files can be opened only once a second."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif loop.time() > self._next_notice:
            self._next_notice = loop.time() + 1
            log.error("no more connections can be accepted: the limit of open files is reached")

    def run(self) -> None:
        """Serve until told to stop.

        A ``SystemExit`` in any task stops the event loop, and agents' tools raise it (``argparse`` does). It ends its own
        response, and no other.
        """
        serving = self.loop.create_task(self._serve())
        try:
            while not serving.done():
                try:
                    self.loop.run_until_complete(serving)
                except (SystemExit, KeyboardInterrupt) as error:
                    if serving.done():
                        raise
                    log.exception("a task raised %s, which ends its response", type(error).__name__)
        except Exception:
            log.exception("the worker failed")
        finally:
            self._cleanup()
        # Python would wait for the threads of tools, which can't be interrupted.
        log.info("the worker has stopped")
        logging.shutdown()
        os._exit(0)

    def connect(self, connection: Protocol) -> bool:
        """Count a new connection; whether it is within the bounds. Behind proxies all come from the proxies' addresses."""
        self.connections.add(connection)
        self._of_peer[connection.peer] += 1
        total = self._most = self._most or _allowed_connections(self.cfg.worker_connections)
        each = total if self.asgi.asgi.behind_proxy else total // PART
        return bool(len(self.connections) <= total and self._of_peer[connection.peer] <= each)

    def disconnect(self, connection: Protocol) -> None:
        """Count a connection no more."""
        self.connections.discard(connection)
        self._of_peer[connection.peer] -= 1
        if not self._of_peer[connection.peer]:
            del self._of_peer[connection.peer]

    def handle_exit_signal(self) -> None:
        """Stop (SIGTERM): be not ready for the time of draining, then finish what has begun."""
        self.asgi.asgi.draining = True
        self.loop.call_later(self.asgi.asgi.drain_seconds, self._finish)

    def _finish(self) -> None:
        self.loop.call_later(max(0, self.asgi.asgi.stop_seconds - INTERRUPT_SECONDS), self.asgi.asgi.interrupt)
        self.loop.call_later(IDLE_SECONDS, self._close_idle)
        self._announce(self.loop.time() + ANNOUNCE_SECONDS)

    def _announce(self, until: float) -> None:
        """Let the next response of each connection say that it is the last, and only then stop to serve.

        gunicorn would also close those whose response has just said that they are kept, and lose the request that follows.
        """
        if self.loop.time() > until:
            super().handle_exit_signal()
            return
        for connection in self.connections:
            connection.close_after_next_response()
        self.loop.call_later(0.02, self._announce, until)

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()

    async def _shutdown(self) -> None:
        """Take in the connections that wait to be accepted, because closing the port would reset them."""
        waiting = []
        for listener in self.sockets:
            with suppress(OSError):  # there are no more
                while True:
                    waiting.append(listener.sock.accept()[0])
        for server in self.servers:
            server.close()
        self.loop.call_later(IDLE_SECONDS, self._close_idle)  # also where no signal has brought us here
        for connection in waiting:
            connection.setblocking(False)
            await self.loop.connect_accepted_socket(lambda: Protocol(self), connection)
        await super()._shutdown()

    def handle_quit_signal(self) -> None:
        """Stop at once (SIGINT, SIGQUIT), but keep what was said so far."""
        super().handle_quit_signal()
        self.asgi.asgi.interrupt()
