"""HTTP calls with ``requests`` that end in time and stay small, whatever the other side does.

The timeouts of ``requests`` hold for one wait on the socket, so an upstream that sends a byte a second keeps a call open for
ever, be it in the headers or in the body. Here every wait gets what is left of the whole call's budget, and every byte counts.
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError

log = logging.getLogger(__name__)


@dataclass
class _Budget:
    deadline: float
    bytes_left: int

    def seconds_left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the call's time is up")
        return left


_budget: ContextVar[_Budget] = ContextVar("call_budget")


class CallFailed(Exception):
    """There was no response in time. The cause is the exception of the library that noticed."""


class ResponseUnreadable(CallFailed):
    """The response is not encoded as it says."""


class Response(NamedTuple):
    """What the other side responded."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    """Decoded. One byte more than was allowed where there was more."""


def call(session: requests.Session, request: requests.PreparedRequest, *, seconds: float, max_bytes: int) -> Response:
    """Send ``request`` through a ``bounded_session``, and once more if the connection broke, as a kept one may.

    Both tries together take ``seconds`` and receive about ``max_bytes``. Redirects are not followed.

    Raises:
        CallFailed: there was no response in time.
        ResponseUnreadable: the body can't be decoded.
    """
    # Status line, headers and a chunk's framing come on top of the body's bytes.
    token = _budget.set(_Budget(time.monotonic() + seconds, max_bytes + 64 * 1024))
    try:
        try:
            return _send(session, request, seconds, max_bytes)
        except requests.Timeout:
            raise
        except requests.ConnectionError as error:
            log.info("a connection broke (%s), trying once more", type(error).__name__)
            return _send(session, request, seconds, max_bytes)
    except (requests.exceptions.ContentDecodingError, urllib3.exceptions.DecodeError) as error:
        raise ResponseUnreadable("the response is not encoded as it says") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise CallFailed("no response in time") from error
    finally:
        _budget.reset(token)


def _send(session: requests.Session, request: requests.PreparedRequest, seconds: float, max_bytes: int) -> Response:
    with session.send(request, timeout=seconds, allow_redirects=False, stream=True) as response:
        return Response(response.status_code, response.headers, response.raw.read(max_bytes + 1, decode_content=True))


def bounded_session(connections: int) -> requests.Session:
    """A ``requests.Session`` for ``call``, which keeps up to ``connections`` open."""
    session = requests.Session()
    session.trust_env = False  # no proxy and no .netrc of the machine gets to see what is sent
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # nothing carries over from call to call
    for scheme in ("https://", "http://"):
        session.mount(scheme, _BoundedAdapter(pool_maxsize=connections))
    return session


class _BoundedAdapter(HTTPAdapter):
    """A transport of ``requests`` whose calls keep to the budget of ``call``."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class _BoundedStream(io.RawIOBase):
    """What the socket sends, as long as the budget lasts."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._budget = _budget.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._budget.seconds_left())
        count = self._raw.readinto(buffer)
        self._budget.bytes_left -= count or 0
        if self._budget.bytes_left < 0:
            raise urllib3.exceptions.DecodeError("the answer is too long")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        # Python 3.14 made the default 128 KiB, which would read past the budget for headers and framing.
        self.fp = io.BufferedReader(_BoundedStream(sock), 8 * 1024)


class _BoundedConnection(HTTPConnection):
    response_class = _Response

    def connect(self) -> None:
        """Connect in a thread that is left behind when time is up: looking a name up can't be given a timeout."""
        outcome: Future[None] = Future()

        def run() -> None:
            try:
                super(_BoundedConnection, self).connect()
            except Exception as error:  # noqa: BLE001  raised again in the thread that waits
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

        threading.Thread(target=run, name="connect", daemon=True).start()
        try:
            outcome.result(timeout=_budget.get().seconds_left())
        except TimeoutError as error:
            outcome.add_done_callback(lambda _: self.close())
            raise ConnectTimeoutError(self, "no connection in time") from error


class _BoundedTLSConnection(_BoundedConnection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _BoundedConnection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedTLSConnection
