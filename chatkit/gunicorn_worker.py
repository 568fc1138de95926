"""gunicorn's threaded worker, where this service needs another: in its answer to what is no request, and in its patience.

It builds on methods that gunicorn does not document as an interface; requirements.txt pins it, and test_gunicorn.py would tell.
"""

from __future__ import annotations

import contextlib
import json
import select
import selectors
import socket
import threading
import time
from functools import partial
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

from chatkit import stopping
from chatkit.envelopes import error_envelope
from chatkit.logs import new_request_id

WAIT_SECONDS = 20  # for a client to send or to take its next bytes; it has a thread to itself meanwhile
INTERRUPT_AFTER_SECONDS = 20  # of the 25 s that gunicorn.conf.py gives a stop


# Status and phrase for what can't be parsed; the first kind that fits. Python's own phrases differ from version to version.
_ANSWERS = {
    LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    LimitRequestLine: (414, "Request URI Too Long"),
    ParseException: (400, "Bad Request"),
}
_FAULT = (500, "Internal Server Error")


class Worker(ThreadWorker):
    """A ``gthread`` worker."""

    def enqueue_req(self, conn: Any) -> None:
        """Let a new connection wait for its first byte in the poller.

        gunicorn lets it wait in a thread, five seconds each, so that a few hundred idle ones would stop the service.
        """
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        _limit_waiting(conn)
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + self.cfg.keepalive
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def set_accept_enabled(self, enabled: bool | None) -> None:
        """At a stop, take in whoever is connected already, and have others refused at once.

        gunicorn leaves the port open without accepting: who connects during the stop waits for its end and is then cut off.
        """
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                while select.select([listener], [], [], 0)[0]:
                    self.accept(listener)
                listener.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """At a stop, set an end to what may go on for long: answers, and connections that have said nothing yet.

        The latter get as long as kept-alive ones. Browsers open connections in advance, and one of them would make each stop
        last the whole grace period.
        """
        timer = threading.Timer(INTERRUPT_AFTER_SECONDS, stopping.interrupt)
        timer.daemon = True
        timer.start()
        super()._cap_keepalive(deadline)  # type: ignore[misc]  # newer than the type stubs
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout or deadline, deadline)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """At a quick stop (Ctrl-C), end what is going on in an orderly way before the process ends."""
        stopping.interrupt()
        super().handle_quit(sig, frame)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what could not be parsed: headers that are too large, a request that is not HTTP."""
        request_id = new_request_id()
        status, phrase = next((answer for kind, answer in _ANSWERS.items() if isinstance(exc, kind)), _FAULT)
        code = phrase.lower().replace(" ", "_")
        if status == _FAULT[0]:
            self.log.error("fault in the server", exc_info=exc, extra={"request_id": request_id})
        else:
            # The exception's text quotes what was sent, and that may be anything.
            self.log.info("%d %s: %s", status, code, type(exc).__name__, extra={"request_id": request_id})
        body = json.dumps(error_envelope(phrase.capitalize(), code)).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\n"
            "Connection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n\r\n"
        )
        with contextlib.suppress(OSError):  # the client may be gone
            client.sendall(head.encode() + body)


def _limit_waiting(conn: Any) -> None:
    """Let no wait for the client of ``conn`` last longer than ``WAIT_SECONDS``.

    gunicorn calls ``init`` before each request of a connection, and waits without limit after it.
    """
    init = conn.init

    def init_and_limit() -> None:
        init()
        conn.sock.settimeout(WAIT_SECONDS)

    conn.init = init_and_limit
