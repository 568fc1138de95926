"""Serves the Flask application on an event loop. Views run in threads; streams run on the loop and hold none.

A request's body is read on the loop, within its size and its time, before any thread is taken. Then the Flask application runs
in a bounded pool of threads up to its response. A view that returns ``deferred`` leaves the rest to the loop, where OpenAI's
server runs: its chunks are sent as they are made, and the task that makes them is cancelled when the client leaves.

What is refused here is rendered by the same Flask application, in the same envelope and with the same headers: a
``before_request`` function raises the error. This runs on the loop, because it does not block.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout
from werkzeug.middleware.proxy_fix import ProxyFix

from chatkit.limits.concurrency import PART, Shares
from chatkit.limits.rate import client_address
from chatkit.limits.starts import Starts
from chatkit.web import logs
from chatkit.web.buffer import Buffer
from chatkit.web.errors import NotFound, ServiceBusy
from chatkit.web.watchdog import watch_loop
from chatkit.web.wsgi import WsgiResponse, make_environ

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Produce = Callable[[Buffer], Awaitable[None]]
"""Makes the chunks of a response."""

BODY_SECONDS: float = 60  # for a whole body, from the end of the head on
SILENCE_SECONDS: float = 20  # for its next piece
DISCARD_SECONDS = 5  # for the rest of a body that is too large, so that its sender gets to read the response
MAX_BODIES_BYTES = 64 * 1024 * 1024  # that wait at the same time in one process
MAX_PIECES = 20_000  # of one body; 8 MiB come in some thousands
PIECES_AT_ONCE = 64  # before others on the loop get their turn
FIRST_EVENT_SECONDS = 30  # of a stream; no model has been asked until then
JSON_SECONDS = 75  # a dictation is given 60
HEARTBEAT_SECONDS = 10  # platforms cut connections that are silent for 30 to 60 s
HEARTBEAT = b": keep-alive\n\n"
READINESS_SECONDS = 0.8  # a health check that takes a second is taken for failed
READINESS_KEPT_SECONDS = 1.0
AGENT_THREADS = 128
# More threads at once would keep the event loop from the processor.
VIEWS_STARTING, VIEWS_OF_AN_ADDRESS, VIEW_SECONDS = 16, 2, 0.01

_DEFERRED = "chatkit.deferred"
_FAILURE = "chatkit.failure"
MISSING = "chatkit.missing"
"""The environ's key for what keeps the service from being ready."""

log = logging.getLogger(__name__)


class _ClientLeft(Exception):
    """The client has left before its response has begun."""


class _Deferred:
    """What a view leaves to the loop."""

    produce: Produce | None = None
    streaming = False


def deferred(produce: Produce, *, streaming: bool) -> Response:
    """A response whose chunks ``produce`` makes on the event loop: an event stream, or one JSON value.

    The first chunk decides the status: an error before it is answered as a view's is. Under a plain WSGI server (Flask's test
    client, ``flask run``) the whole is made before anything is sent, on a loop of its own.
    """
    mimetype = "text/event-stream" if streaming else "application/json"
    left: _Deferred | None = request.environ.get(_DEFERRED)
    if left is None:
        return Response(asyncio.run(_everything(produce)), mimetype=mimetype)
    left.produce, left.streaming = produce, streaming
    return Response(mimetype=mimetype)


async def _everything(produce: Produce) -> bytes:
    buffer = Buffer()
    making = _start_making(produce, buffer)
    chunks = [await _first(buffer, making, JSON_SECONDS)]
    while (chunk := await buffer.take(JSON_SECONDS)) is not None:
        chunks.append(chunk)
    return b"".join(chunks)


async def _make(produce: Produce, buffer: Buffer) -> None:
    try:
        await produce(buffer)
    except Exception as error:  # noqa: BLE001  raised again in the reader
        buffer.end(error)


def _start_making(produce: Produce, buffer: Buffer, context: Context | None = None) -> asyncio.Task[None]:
    making = asyncio.get_running_loop().create_task(_make(produce, buffer), context=context)
    making.add_done_callback(lambda _: buffer.end())
    return making


async def _first(buffer: Buffer, making: asyncio.Task[None], seconds: float) -> bytes:
    """The first chunk, which decides the status."""
    chunk = await buffer.take(seconds)
    if chunk is None:
        if making.cancelled():
            raise ServiceBusy("the process is about to stop")
        raise NotFound("nothing to answer: no such item in this thread")
    if not chunk:
        raise ServiceBusy(f"nothing to send after {seconds} s")
    return chunk


class AsgiFlask(Flask):
    """A Flask application that is an ASGI application as well, so that ``app:app`` is either."""

    asgi: Adapter

    def __call__(self, *call: Any) -> Any:
        return self.asgi(*call) if len(call) == 3 else super().__call__(*call)


class _Request:
    """One HTTP request on its way through the adapter."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.environ = make_environ(scope)
        self.environ[_DEFERRED] = self.deferred = _Deferred()
        self.context: Context = copy_context()  # of all that is run for it, in threads and on the loop
        self.body_bytes = 0
        self.started = False

    async def respond(self, response: WsgiResponse, body: bytes) -> None:
        """Send a whole response."""
        await self.start(response)
        await self.send({"type": "http.response.body", "body": body})

    async def start(self, response: WsgiResponse) -> None:
        self.started = True
        await self.send({"type": "http.response.start", "status": response.status, "headers": response.headers})


class Adapter:
    """The ASGI side of an ``AsgiFlask``.

    Args:
        app: the application.
        threads: how many views run at the same time.
        proxy_hops: how many proxies in front say where a request comes from.
        drain_seconds: how long the process goes on as before once it is told to stop, except that it is not ready.
        stop_seconds: how long it then has to finish what has begun.
        max_body_bytes: the most that the body of a request to a path may have.
        missing: returns what the service lacks to be ready; may block.
        background: coroutine functions that run as long as the process serves.
    """

    def __init__(
        self,
        app: AsgiFlask,
        *,
        threads: int,
        proxy_hops: int,
        drain_seconds: int,
        stop_seconds: int,
        max_body_bytes: Callable[[str], int],
        missing: Callable[[], list[str]],
        background: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="view")
        self._threads = Shares("requests", threads, max(1, threads // PART))
        self._views = Starts(VIEWS_STARTING, VIEWS_OF_AN_ADDRESS, VIEW_SECONDS)
        self._bodies = Shares("bytes of request bodies", MAX_BODIES_BYTES, MAX_BODIES_BYTES // PART)
        self._max_body_bytes = max_body_bytes
        self._missing = missing
        self._background = [watch_loop, *background]
        self.behind_proxy = proxy_hops > 0
        self.drain_seconds, self.stop_seconds = drain_seconds, stop_seconds
        # Only says where a request comes from; the application has its own.
        self._proxy_fix = ProxyFix(lambda _environ, _start: (), x_for=proxy_hops)
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._check: asyncio.Future[list[str]] | None = None
        self._checked_at = 0.0
        self._making: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether the process is about to stop: it still serves, and says that it is not ready."""
        app.before_request(_raise_failure)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the process's lifespan."""
        if scope["type"] == "http":
            await self._serve(_Request(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:  # a WebSocket, refused before it is accepted
            await receive()
            await send({"type": "websocket.close"})

    def interrupt(self) -> None:
        """End all responses that are being made, as if their readers had left: what was said so far is kept."""
        for making in self._making:
            making.cancel()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        # Functions of agents that are not async run in the loop's own threads, of which there are few by default.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(AGENT_THREADS, thread_name_prefix="agent"))
        tasks = [asyncio.ensure_future(run()) for run in self._background]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, it: _Request) -> None:
        address = self._address(it)
        path = it.environ["PATH_INFO"]
        try:
            if path == "/healthz":
                await self._answer_here(it)
            elif path == "/readyz":
                it.environ[MISSING] = await self._what_is_missing()
                await self._answer_here(it)
            else:
                await self._read_body(it, address, self._max_body_bytes(path))
                await self._answer_in_thread(it, address)
        except _ClientLeft:
            it.context.run(log.info, "a client left before its response had begun")
        except Exception as error:
            if it.started:
                log.exception("a response broke off")
            else:
                it.environ[_FAILURE] = error
                await self._answer_here(it)
        finally:
            self._bodies.give_back(address, it.body_bytes)

    def _address(self, it: _Request) -> str:
        located = dict(it.environ)
        self._proxy_fix(located, lambda *_: lambda _chunk: None)
        return client_address(located.get("REMOTE_ADDR"))

    async def _what_is_missing(self) -> list[str]:
        """What keeps the service from being ready; one check a second for all who ask, because it costs a transaction."""
        if self.draining:
            return ["a process that is not shutting down"]
        loop = asyncio.get_running_loop()
        if self._check is None or (self._check.done() and loop.time() - self._checked_at > READINESS_KEPT_SECONDS):
            self._check = loop.run_in_executor(self._checker, self._missing)
            self._checked_at = loop.time()
        try:
            return await asyncio.wait_for(asyncio.shield(self._check), READINESS_SECONDS)
        except TimeoutError:
            return ["what this service needs (it does not answer in time)"]

    async def _read_body(self, it: _Request, address: str, limit: int) -> None:
        chunks: list[bytes] = []
        declared = it.environ.get("CONTENT_LENGTH", "")
        too_large = declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit)
        pieces = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = not too_large
                while more:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await it.receive()
                    pieces += 1
                    if pieces % PIECES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                    if message["type"] != "http.request":
                        raise _ClientLeft
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    if too_large := it.body_bytes + len(chunk) > limit or pieces > MAX_PIECES:
                        break
                    self._bodies.take(address, len(chunk))
                    it.body_bytes += len(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            raise RequestTimeout from None
        if too_large:
            if "HTTP_EXPECT" not in it.environ:
                await _discard(it.receive)
            raise RequestEntityTooLarge
        it.environ["wsgi.input"] = io.BytesIO(b"".join(chunks))
        it.environ["CONTENT_LENGTH"] = str(it.body_bytes)

    async def _answer_here(self, it: _Request) -> None:
        """Answer without a thread what waits for nothing."""
        it.environ.update({"wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"})
        it.deferred.produce = None
        response = WsgiResponse()
        body = it.context.run(self._call, it, response)
        await self._respond(it, response, body)

    async def _respond(self, it: _Request, response: WsgiResponse, body: bytes) -> None:
        try:
            await it.respond(response, body)
        finally:
            it.context.run(response.close)

    async def _answer_in_thread(self, it: _Request, address: str) -> None:
        response = WsgiResponse()
        leave = await self._views.enter(address)
        try:
            self._threads.take(address)
        except BaseException:
            leave()
            raise
        running = self._pool.submit(it.context.run, self._call, it, response)
        running.add_done_callback(lambda _: self._threads.give_back(address))
        answer = asyncio.wrap_future(running)
        answer.add_done_callback(lambda _: leave())
        try:
            body = await asyncio.shield(answer)
        except asyncio.CancelledError:
            running.add_done_callback(lambda _: it.context.run(response.close))  # nobody reads it
            raise
        if it.deferred.produce is None:
            await self._respond(it, response, body)
            return
        try:
            await self._send_deferred(it, response, it.deferred.produce)
        finally:
            it.environ[logs.SUPERSEDED] = not it.started
            # In a thread, because what is released may be in Redis.
            await asyncio.shield(asyncio.wrap_future(self._pool.submit(it.context.run, response.close)))
            it.environ[logs.SUPERSEDED] = False

    def _call(self, it: _Request, response: WsgiResponse) -> bytes:
        """Run the application; its response's body, unless that is deferred."""
        response.chunks = self._app.wsgi_app(it.environ, response.start)
        return b"" if it.deferred.produce else b"".join(response.chunks)

    async def _send_deferred(self, it: _Request, response: WsgiResponse, produce: Produce) -> None:
        buffer = Buffer()
        making = _start_making(produce, buffer, it.context)
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        watching = asyncio.create_task(_cancel_when_left(it.receive, making))
        try:
            seconds = FIRST_EVENT_SECONDS if it.deferred.streaming else JSON_SECONDS
            try:
                chunk: bytes | None = await _first(buffer, making, seconds)
            except ServiceBusy:
                if watching.done():
                    raise _ClientLeft from None
                raise
            response.headers = [header for header in response.headers if header[0] != b"content-length"]
            if not it.deferred.streaming:
                await it.respond(response, chunk or b"")
                return
            await it.start(response)
            while chunk is not None:
                await it.send({"type": "http.response.body", "body": chunk or HEARTBEAT, "more_body": True})
                chunk = await buffer.take(HEARTBEAT_SECONDS)
            await it.send({"type": "http.response.body"})
        finally:
            watching.cancel()
            making.cancel()
            await asyncio.wait({making})


def _raise_failure() -> None:
    """Answer with the error that the adapter has met before the application was asked."""
    if failure := request.environ.get(_FAILURE):
        raise failure


async def _discard(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            pieces = 0
            while (await receive()).get("more_body"):
                pieces += 1
                if pieces % PIECES_AT_ONCE == 0:
                    await asyncio.sleep(0)


async def _cancel_when_left(receive: Receive, making: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    making.cancel()
