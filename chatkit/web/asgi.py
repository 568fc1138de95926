"""Serves the Flask application over ASGI. Views run in threads; streams run on the event loop and hold no thread.

The request body is read on the loop, within limits of size and time, before a thread is taken. Then the Flask application runs
in a bounded thread pool. A view that returns ``deferred`` leaves its body to the loop, where OpenAI's server runs: the body is
sent chunk by chunk. When the client disconnects, the task that produces it is cancelled, or goes on without a reader.

Errors of this module are rendered by the Flask application, with the same envelope and headers as all others: a
``before_request`` function raises them. It runs on the loop, because it does not block.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from flask import Flask, Response
from flask import request as flask_request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from chatkit.limits.concurrency import ADDRESS_DIVISOR, ConcurrencyLimit
from chatkit.limits.rate import client_address
from chatkit.limits.starts import Starts
from chatkit.web import logs
from chatkit.web.buffer import Buffer
from chatkit.web.errors import NotFound, NotReady, ServiceBusy
from chatkit.web.proxy_fix import ProxyFix
from chatkit.web.request_body import MAX_UPLOAD_BYTES
from chatkit.web.watchdog import watch_loop
from chatkit.web.wsgi import WsgiResponse, make_environ

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Produce = Callable[[Buffer], Awaitable[None]]
"""Writes the chunks of a response body."""

BODY_SECONDS: float = 60  # for a whole request body, from the end of the headers
BODY_IDLE_SECONDS: float = 20  # for its next chunk
DISCARD_SECONDS = 5  # for the rest of a body that is too large, so that its sender can read the response
# Of all request bodies in memory, in one process. What a body has beyond 64 KiB can't take the room of small bodies, which are
# those of all requests but dictation and large outputs of client tools.
SMALL_BODY_BYTES, SMALL_BODIES_BYTES, LARGE_BODIES_BYTES = 64 * 1024, 16 * 1024 * 1024, 64 * 1024 * 1024
MAX_CHUNKS = 20_000  # of one request body; 8 MiB arrive in some thousands
CHUNKS_PER_YIELD = 64  # before other tasks on the loop get their turn
FIRST_EVENT_SECONDS = 30  # of a stream; no model has been called until then
JSON_SECONDS = 75  # a dictation may take 60
HEARTBEAT_SECONDS = 10  # platforms cut connections that are idle for 30 to 60 s
HEARTBEAT = b": keep-alive\n\n"
READINESS_SECONDS = 0.8  # platforms treat a health check as failed after a second
READINESS_CACHE_SECONDS = 1.0
AGENT_THREADS = 128
# More views at once would starve the event loop of processor time.
STARTING_VIEWS, STARTING_VIEWS_PER_ADDRESS, START_SECONDS = 16, 2, 0.01
# Uploads in memory, besides other bodies: 48 MiB. A page sends all files of a message at once, perhaps on a slow line.
UPLOADS, UPLOADS_PER_ADDRESS = 6, 2
UPLOAD_SECONDS: float = 300  # for a whole upload, and before that for its turn
CONTENDED_UPLOAD_SECONDS = 60  # for a whole upload while other addresses wait, because all turns are taken

_DEFERRED = "chatkit.deferred"
_ERROR = "chatkit.error"
MISSING = "chatkit.missing"
"""The environ key of the result of the readiness check: what is missing."""

log = logging.getLogger(__name__)


class _ClientDisconnected(Exception):
    """The client disconnected before the response began."""


class _Deferred:
    """The body that a view leaves to the loop.

    Separate from ``_Request``, because an environ that refers to its request would keep the body in memory until the garbage
    collector runs.
    """

    produce: Produce | None = None
    streaming = False
    outlives_client = False


def deferred(produce: Produce, *, streaming: bool, outlives_client: bool = False) -> Response:
    """Return a response whose body ``produce`` writes on the event loop: an event stream, or one JSON value.

    If the client disconnects, ``produce`` is cancelled. With ``outlives_client`` it goes on, even before the response
    has begun, and what it writes is discarded. The response is closed when ``produce`` has ended, so its view's limits are
    held until then.

    An error before the first chunk is handled like an error of the view. Under a plain WSGI server (Flask's test client,
    ``flask run``) the whole body is produced before anything is sent, on a loop of its own.
    """
    mimetype = "text/event-stream" if streaming else "application/json"
    body: _Deferred | None = flask_request.environ.get(_DEFERRED)
    if body is None:
        return Response(asyncio.run(_collect(produce)), mimetype=mimetype)
    body.produce, body.streaming, body.outlives_client = produce, streaming, outlives_client
    return Response(mimetype=mimetype)


async def _collect(produce: Produce) -> bytes:
    buffer = Buffer()
    producer = _start_producer(produce, buffer)
    chunks = [await _first_chunk(buffer, producer, JSON_SECONDS)]
    while (chunk := await buffer.take(JSON_SECONDS)) is not None:
        chunks.append(chunk)
    return b"".join(chunks)


def _start_producer(produce: Produce, buffer: Buffer, context: Context | None = None) -> asyncio.Task[None]:
    async def run() -> None:
        try:
            await produce(buffer)
        except Exception as error:
            if buffer.is_detached:
                log.warning("a response without a reader failed", exc_info=error)
            buffer.end(error)  # raised again in the reader

    producer = asyncio.get_running_loop().create_task(run(), context=context)
    producer.add_done_callback(lambda _: buffer.end())
    return producer


async def _first_chunk(buffer: Buffer, producer: asyncio.Task[None], seconds: float) -> bytes:
    chunk = await buffer.take(seconds)
    if chunk is None:
        if producer.cancelled():
            raise ServiceBusy("the response was stopped before it began")
        raise NotFound("the response is empty: no such item in this thread")
    if not chunk:
        raise ServiceBusy(f"no first chunk within {seconds} s")
    return chunk


class AsgiFlask(Flask):
    """A Flask application that is an ASGI application as well, so that servers of both kinds can run ``app:app``."""

    asgi: Adapter

    def __call__(self, *call: Any) -> Any:
        return self.asgi(*call) if len(call) == 3 else super().__call__(*call)


class _Request:
    """An HTTP request in the adapter."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.environ = make_environ(scope)
        self.environ[_DEFERRED] = self.deferred = _Deferred()
        self.context: Context = copy_context()  # for all code that runs for this request, in threads and on the loop
        self.body_bytes = 0
        self.started = False
        self.disconnected = False
        """Whether the client left while the deferred body was produced."""

    @property
    def is_detachable(self) -> bool:
        """Whether the deferred body goes on without the client. A client that is told of an error knows that it does not."""
        return (self.started or self.disconnected) and self.deferred.outlives_client

    async def respond(self, response: WsgiResponse, body: bytes) -> None:
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
        proxy_hops: the number of trusted proxies in front.
        drain_seconds: how long the process keeps serving, but reports not ready, after it was told to stop.
        stop_seconds: how long it then has to finish its requests.
        max_body_bytes: returns the size limit of a request body, given the path.
        is_upload: see ``Backend.is_upload``.
        missing: the readiness check, see ``Backend.missing``; may block.
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
        is_upload: Callable[[str, str], bool],
        missing: Callable[[], list[str]],
        background: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="view")
        self._threads = ConcurrencyLimit("requests", threads, max(1, threads // ADDRESS_DIVISOR))
        self._views = Starts(STARTING_VIEWS, STARTING_VIEWS_PER_ADDRESS, START_SECONDS)
        self._small_bodies, self._large_bodies = (
            ConcurrencyLimit(f"bytes of {size} request bodies", total, total // ADDRESS_DIVISOR)
            for size, total in (("small", SMALL_BODIES_BYTES), ("large", LARGE_BODIES_BYTES))
        )
        self._uploads = Starts(UPLOADS, UPLOADS_PER_ADDRESS, None)
        self._max_body_bytes = max_body_bytes
        self._is_upload = is_upload
        self._missing = missing
        self._background = [watch_loop, *background]
        self.behind_proxy = proxy_hops > 0
        self.drain_seconds, self.stop_seconds = drain_seconds, stop_seconds
        # Only for client addresses; the application has its own.
        self._proxy_fix = ProxyFix(lambda _environ, _start: (), x_for=proxy_hops)
        self._readiness_pool = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._readiness: asyncio.Future[list[str]] | None = None
        self._readiness_at = 0.0
        self._producers: dict[asyncio.Task[None], Buffer] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._interrupted = False
        self.draining = False
        """Whether the process is shutting down: it still serves, but reports not ready."""
        app.before_request(_raise_error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an HTTP request or the lifespan protocol."""
        if scope["type"] == "http":
            await self._serve(_Request(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        else:  # a WebSocket, rejected before it is accepted
            await receive()
            await send({"type": "websocket.close"})

    def interrupt(self) -> None:
        """Cancel all deferred responses, because the process stops, and those to come: replies are saved as far as they got."""
        self._interrupted = True
        for producer, buffer in self._producers.items():
            if not producer.cancelling():  # not one that the user has just stopped
                buffer.interrupted = True
                producer.cancel()

    @property
    def is_busy(self) -> bool:
        """Whether a deferred response is being produced or closed, with or without a client."""
        return bool(self._closing)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        # Agents' functions that are not async run in the loop's default executor, which has few threads by default.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(AGENT_THREADS, thread_name_prefix="agent"))
        tasks = [asyncio.ensure_future(run()) for run in self._background]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, request: _Request) -> None:
        address = self._address(request)
        path = request.environ["PATH_INFO"]
        try:
            if path == "/healthz":
                await self._run_on_loop(request)
            elif path == "/readyz":
                request.environ[MISSING] = await self._check_readiness()
                await self._run_on_loop(request)
            elif self._is_upload(path, request.environ["QUERY_STRING"]):
                await self._serve_upload(request, address)
            else:
                admit = partial(self._admit_body, request, address)
                await _read_body(request, self._max_body_bytes(path), BODY_SECONDS, admit)
                await self._run_in_thread(request, address)
        except _ClientDisconnected:
            request.context.run(log.info, "the client disconnected before the response began")
        except Exception as error:
            if request.started:
                log.exception("a response ended early")
            else:
                request.environ[_ERROR] = error
                await self._run_on_loop(request)
        finally:
            small = min(request.body_bytes, SMALL_BODY_BYTES)
            self._small_bodies.release(address, small)
            self._large_bodies.release(address, request.body_bytes - small)

    def _admit_body(self, request: _Request, address: str, size: int) -> None:
        """Acquire memory for the next ``size`` bytes of a body."""
        small = min(size, max(0, SMALL_BODY_BYTES - request.body_bytes))
        for limit, part in ((self._small_bodies, small), (self._large_bodies, size - small)):
            limit.acquire(address, part)
            request.body_bytes += part

    async def _serve_upload(self, request: _Request, address: str) -> None:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                end = await self._uploads.enter(address)
        except TimeoutError:
            raise RequestTimeout from None
        loop = asyncio.get_running_loop()
        contended = loop.time() + CONTENDED_UPLOAD_SECONDS

        def admit(_size: int) -> None:
            if loop.time() > contended and self._uploads.is_full:
                raise RequestTimeout

        try:
            await _read_body(request, MAX_UPLOAD_BYTES, UPLOAD_SECONDS, admit)
            await self._run_in_thread(request, address)
        finally:
            end()

    def _address(self, request: _Request) -> str:
        located = dict(request.environ)
        self._proxy_fix(located, lambda *_: lambda _chunk: None)
        return client_address(located.get("REMOTE_ADDR"))

    async def _check_readiness(self) -> list[str]:
        """Return what is missing. Requests share one check per second, because it costs a transaction.

        Raises:
            NotReady: the process is shutting down, or the check takes too long.
        """
        if self.draining:
            raise NotReady("The process is shutting down")
        loop = asyncio.get_running_loop()
        if self._readiness is None or (self._readiness.done() and loop.time() - self._readiness_at > READINESS_CACHE_SECONDS):
            self._readiness = loop.run_in_executor(self._readiness_pool, self._missing)
            self._readiness_at = loop.time()
        try:
            return await asyncio.wait_for(asyncio.shield(self._readiness), READINESS_SECONDS)
        except TimeoutError:
            raise NotReady("The check timed out") from None

    async def _run_on_loop(self, request: _Request) -> None:
        """Handle a request that blocks on nothing, without a thread."""
        request.environ.update({"wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"})
        request.deferred.produce = None
        response = WsgiResponse()
        body = request.context.run(self._call, request, response)
        await self._respond(request, response, body)

    async def _respond(self, request: _Request, response: WsgiResponse, body: bytes) -> None:
        try:
            await request.respond(response, body)
        finally:
            request.context.run(response.close)

    async def _run_in_thread(self, request: _Request, address: str) -> None:
        response = WsgiResponse()
        started = await self._views.enter(address)
        try:
            self._threads.acquire(address)
        except BaseException:
            started()
            raise
        view = self._pool.submit(request.context.run, self._call, request, response)
        view.add_done_callback(lambda _: self._threads.release(address))
        result = asyncio.wrap_future(view)
        result.add_done_callback(lambda _: started())
        try:
            body = await asyncio.shield(result)
        except asyncio.CancelledError:
            view.add_done_callback(lambda _: request.context.run(response.close))  # no one sends the response
            raise
        if request.deferred.produce is None:
            await self._respond(request, response, body)
            return
        buffer = Buffer()
        producer = _start_producer(request.deferred.produce, buffer, request.context)
        self._producers[producer] = buffer
        producer.add_done_callback(self._producers.pop)
        if self._interrupted:
            producer.cancel()
        closing = asyncio.create_task(self._close(request, response, producer))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        try:
            await self._send_deferred(request, response, buffer, producer)
        finally:
            if producer.done() or not request.is_detachable:
                await asyncio.shield(closing)

    async def _close(self, request: _Request, response: WsgiResponse, producer: asyncio.Task[None]) -> None:
        """Close a deferred response when its producer has ended. The request may have ended before."""
        await asyncio.wait({producer})
        request.environ[logs.SUPERSEDED] = not (request.started or request.is_detachable)
        # In a thread, because it may release a lease in Redis.
        await asyncio.wrap_future(self._pool.submit(request.context.run, response.close))
        request.environ[logs.SUPERSEDED] = False

    def _call(self, request: _Request, response: WsgiResponse) -> bytes:
        """Run the application and return the body, empty if it is deferred."""
        response.chunks = self._app.wsgi_app(request.environ, response.start)
        return b"" if request.deferred.produce else b"".join(response.chunks)

    async def _send_deferred(
        self, request: _Request, response: WsgiResponse, buffer: Buffer, producer: asyncio.Task[None]
    ) -> None:
        def leave() -> None:
            if request.is_detachable:
                buffer.detach()
            else:
                cancel_once(producer)

        def disconnected() -> None:
            request.disconnected = True
            leave()

        watcher = asyncio.create_task(_on_disconnect(request.receive, disconnected))
        try:
            seconds = FIRST_EVENT_SECONDS if request.deferred.streaming else JSON_SECONDS
            try:
                chunk: bytes | None = await _first_chunk(buffer, producer, seconds)
            except (NotFound, ServiceBusy):
                if request.disconnected:
                    raise _ClientDisconnected from None
                raise
            response.headers = [header for header in response.headers if header[0] != b"content-length"]
            if not request.deferred.streaming:
                await request.respond(response, chunk or b"")
                return
            await request.start(response)
            while chunk is not None:
                await request.send({"type": "http.response.body", "body": chunk or HEARTBEAT, "more_body": True})
                chunk = await buffer.take(HEARTBEAT_SECONDS)
            await request.send({"type": "http.response.body"})
        finally:
            watcher.cancel()
            leave()


async def _read_body(request: _Request, limit: int, seconds: float, admit: Callable[[int], None]) -> None:
    """Read at most ``limit`` bytes within ``seconds``. ``admit`` is called with the size of each chunk; may raise."""
    body = io.BytesIO()  # a list of chunks would fragment the memory
    declared = request.environ.get("CONTENT_LENGTH", "")
    too_large = declared.isdecimal() and (len(declared) > len(str(limit)) or int(declared) > limit)
    received = 0
    try:
        async with asyncio.timeout(seconds):
            more = not too_large
            while more:
                async with asyncio.timeout(BODY_IDLE_SECONDS):
                    message = await request.receive()
                received += 1
                if received % CHUNKS_PER_YIELD == 0:
                    await asyncio.sleep(0)
                if message["type"] != "http.request":
                    raise _ClientDisconnected
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if too_large := body.tell() + len(chunk) > limit or received > MAX_CHUNKS:
                    break
                admit(len(chunk))
                body.write(chunk)
    except TimeoutError:
        raise RequestTimeout from None
    if too_large:
        if "HTTP_EXPECT" not in request.environ:
            await _discard(request.receive)
        raise RequestEntityTooLarge
    request.environ["CONTENT_LENGTH"] = str(body.tell())
    request.environ["wsgi.input"] = body
    body.seek(0)


def _raise_error() -> None:
    """Raise the adapter's error within the application, whose error handlers render it."""
    if error := flask_request.environ.get(_ERROR):
        raise error


async def _discard(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            received = 0
            while (await receive()).get("more_body"):
                received += 1
                if received % CHUNKS_PER_YIELD == 0:
                    await asyncio.sleep(0)


async def _on_disconnect(receive: Receive, leave: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()


def cancel_once(producer: asyncio.Task[None]) -> None:
    """Cancel a producer once: a second time would interrupt it while it saves the reply."""
    if not producer.cancelling():
        producer.cancel()
