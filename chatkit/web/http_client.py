"""HTTP calls with ``requests`` that are bounded in total time and in size.

The timeout of ``requests`` applies to each read from the socket. A server that sends one byte per second therefore never times
out. Here each read gets only the time that remains for the whole call, and all received bytes are counted.
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
            raise TimeoutError("the call took too long")
        return left


_budget: ContextVar[_Budget] = ContextVar("call_budget")


class CallFailed(Exception):
    """There was no response in time. ``__cause__`` is the library's exception."""


class ResponseUnreadable(CallFailed):
    """The body does not match its ``Content-Encoding``, or is too long."""


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    """Decoded. One byte longer than ``max_bytes`` if there was more."""


def call(session: requests.Session, request: requests.PreparedRequest, *, seconds: float, max_bytes: int) -> Response:
    """Send ``request`` through a ``bounded_session``. Retry once if the connection fails, because pooled ones may be stale.

    Both attempts together take ``seconds`` and receive about ``max_bytes``. Redirects are not followed.

    Raises:
        CallFailed: there was no response in time.
        ResponseUnreadable: the body can't be decoded.
    """
    # The extra 64 KiB are for the status line, the headers and the framing of chunks.
    token = _budget.set(_Budget(time.monotonic() + seconds, max_bytes + 64 * 1024))
    try:
        try:
            return _send(session, request, seconds, max_bytes)
        except requests.Timeout:
            raise
        except requests.ConnectionError as error:
            log.info("the connection failed (%s), retrying", type(error).__name__)
            return _send(session, request, seconds, max_bytes)
    except (requests.exceptions.ContentDecodingError, urllib3.exceptions.DecodeError) as error:
        raise ResponseUnreadable("the body can't be decoded") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise CallFailed("no response in time") from error
    finally:
        _budget.reset(token)


def _send(session: requests.Session, request: requests.PreparedRequest, seconds: float, max_bytes: int) -> Response:
    with session.send(request, timeout=seconds, allow_redirects=False, stream=True) as response:
        return Response(response.status_code, response.headers, response.raw.read(max_bytes + 1, decode_content=True))


def bounded_session(connections: int) -> requests.Session:
    """Return a ``requests.Session`` for ``call`` with a pool of up to ``connections``."""
    session = requests.Session()
    session.trust_env = False  # ignore the machine's proxies and .netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # no cookies
    for scheme in ("https://", "http://"):
        session.mount(scheme, _BoundedAdapter(pool_maxsize=connections))
    return session


class _BoundedAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}


class _BoundedStream(io.RawIOBase):
    """Reads from a socket within the budget of the call."""

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
            raise urllib3.exceptions.DecodeError("the response is too long")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        # The default of Python 3.14, 128 KiB, would exceed the budget for headers and framing.
        self.fp = io.BufferedReader(_BoundedStream(sock), 8 * 1024)


class _BoundedConnection(HTTPConnection):
    response_class = _Response

    def connect(self) -> None:
        """Connect in a thread that is abandoned after a timeout, because DNS lookups can't be given one."""
        outcome: Future[None] = Future()

        def run() -> None:
            try:
                super(_BoundedConnection, self).connect()
            except Exception as error:  # noqa: BLE001  raised again in the waiting thread
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
