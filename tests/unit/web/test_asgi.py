"""The event loop's limits of requests and responses, with the real times, which a jumping clock skips."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from flask import Response, request

from chatkit.web.asgi import Adapter, AsgiFlask, deferred
from chatkit.web.buffer import Buffer
from chatkit.web.errors import TooManyRequests, register_error_handlers
from tests.support.jumping_loop import run

MIB = 1024 * 1024
PATH = "/echo"


async def silent(_buffer: Buffer) -> None:
    await asyncio.Event().wait()


async def nothing(_buffer: Buffer) -> None:
    """Produces no body."""


async def failing(_buffer: Buffer) -> None:
    raise TooManyRequests("too many", retry_after=1)


async def failing_later(_buffer: Buffer) -> None:
    await asyncio.sleep(1)
    raise TooManyRequests("too many", retry_after=1)


async def failing_after_a_word(buffer: Buffer) -> None:
    buffer.put(b"data: word\n\n")
    await asyncio.sleep(1)
    raise TooManyRequests("too many", retry_after=1)


async def silent_after_a_word(buffer: Buffer) -> None:
    buffer.put(b"data: word\n\n")
    await asyncio.Event().wait()


async def a_word_per_second(buffer: Buffer) -> None:
    for _ in range(30):
        buffer.put(b"data: word\n\n")
        await asyncio.sleep(1)
    produced.append("finished")


async def slow_to_begin(buffer: Buffer) -> None:
    await asyncio.sleep(5)
    await a_word_per_second(buffer)


produced: list[str] = []
"""What became of ``a_word_per_second`` and its response."""


UPLOAD = b"upload"
"""The query string of an upload."""


class AtOnce(ThreadPoolExecutor):
    """Runs views at once. While a thread ran one, the clock would jump over the time limits of other requests."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  as in a thread
            future.set_exception(error)
        return future


def make_app(missing: Callable[[], list[str]] = list, max_body_bytes: int = 8 * MIB, threads: int = 4) -> AsgiFlask:
    app = AsgiFlask(__name__)
    app.asgi = Adapter(
        app,
        threads=threads,
        proxy_hops=0,
        drain_seconds=0,
        stop_seconds=0,
        max_body_bytes=lambda _path: max_body_bytes,
        is_upload=lambda _path, query: query == UPLOAD.decode(),
        missing=missing,
        background=(),
    )
    app.asgi._pool = AtOnce()
    register_error_handlers(app)
    app.add_url_rule(PATH, view_func=lambda: {"status": "success"}, methods=["POST"])
    app.add_url_rule("/readyz", view_func=ready)
    for name, produce, streaming in (
        ("stream", silent, True),
        ("json", silent, False),
        ("stream-after-a-word", silent_after_a_word, True),
        ("nothing", nothing, True),
        ("error", failing, True),
        ("error-after-a-word", failing_after_a_word, True),
    ):
        app.add_url_rule(f"/{name}", name, view(produce, streaming=streaming), methods=["POST"])
    for name, produce in (
        ("outliving", a_word_per_second),
        ("outliving-slowly", slow_to_begin),
        ("outliving-and-failing", failing_later),
        ("outliving-in-silence", silent),
    ):
        app.add_url_rule(f"/{name}", name, view(produce, streaming=True, outlives_client=True), methods=["POST"])
    return app


def view(produce: Any, *, streaming: bool, outlives_client: bool = False) -> Callable[[], Response]:
    def respond() -> Response:
        response = deferred(produce, streaming=streaming, outlives_client=outlives_client)
        response.call_on_close(lambda: produced.append("closed"))
        return response

    return respond


def ready() -> Any:
    return {"missing": request.environ["chatkit.missing"]}


class Client:
    """A client of the ASGI application, which leaves when it has received ``patience`` chunks."""

    def __init__(self, app: AsgiFlask, path: str = PATH, address: str = "10.0.0.1", patience: int = 100) -> None:
        self.app, self.path, self.address, self.patience = app, path, address, patience
        self.left = asyncio.Event()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.taken = 0

    async def post(
        self, chunks: AsyncIterator[bytes] | None = None, *headers: tuple[bytes, bytes], query: bytes = b""
    ) -> float:
        """Send a request with ``chunks`` as its body, and return the seconds until the end of the response."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        scope = {"type": "http", "method": "POST", "path": self.path, "query_string": query, "http_version": "1.1"}
        if self.path == "/readyz":
            scope["method"] = "GET"
        messages = self._messages(chunks)

        async def receive() -> dict[str, Any]:
            return await anext(messages)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])
            else:
                self.body.append(message.get("body", b""))
                if len(self.body) == self.patience:
                    self.left.set()

        await self.app.asgi({**scope, "headers": list(headers), "client": (self.address, 1)}, receive, send)
        return loop.time() - started

    async def _messages(self, chunks: AsyncIterator[bytes] | None) -> AsyncIterator[dict[str, Any]]:
        if chunks is not None:
            async for chunk in chunks:
                self.taken += 1
                yield {"type": "http.request", "body": chunk, "more_body": True}
            if self.left.is_set():
                yield {"type": "http.disconnect"}
        yield {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        yield {"type": "http.disconnect"}

    @property
    def code(self) -> str:
        code: str = json.loads(b"".join(self.body))["code"]
        return code


async def stalling() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.Event().wait()


async def chunks(number: int, chunk: bytes = b"x", pause: float = 0) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield chunk
        if pause:
            await asyncio.sleep(pause)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# Bodies


def test_client_that_sends_nothing_for_twenty_seconds() -> None:
    async def check() -> None:
        client = Client(make_app())
        assert 19.9 < await client.post(stalling()) < 20.5
        assert (client.status, client.code) == (408, "request_timeout")

    run(check())


@pytest.mark.parametrize(("number", "status"), [(3, 200), (4, 408)])
def test_body_takes_a_minute_at_most(number: int, status: int) -> None:
    async def check() -> None:
        client = Client(make_app())
        seconds = await client.post(chunks(number, pause=19))
        assert client.status == status
        assert seconds < 61

    run(check())


@pytest.mark.parametrize(("number", "status"), [(19_999, 200), (20_000, 413)])
def test_body_has_twenty_thousand_chunks_at_most(number: int, status: int) -> None:
    """The end of a body is one more."""

    async def check() -> None:
        client = Client(make_app())
        await client.post(chunks(number))
        assert client.status == status

    run(check())


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413)])
@pytest.mark.parametrize("declared", [True, False])
def test_size_of_a_body(size: int, status: int, declared: bool) -> None:
    async def check() -> None:
        client = Client(make_app(max_body_bytes=10))
        await client.post(chunks(size), *([(b"content-length", str(size).encode())] if declared else []))
        assert client.status == status

    run(check())


def test_rest_of_a_body_that_is_too_large_is_read_for_five_seconds() -> None:
    async def check() -> None:
        client = Client(make_app(max_body_bytes=10))
        assert 4.9 < await client.post(chunks(100, b"x" * 11, pause=1)) < 5.5
        assert client.status == 413
        assert client.taken in (5, 6)
        expecting = Client(make_app(max_body_bytes=10))
        await expecting.post(chunks(100), (b"content-length", b"100"), (b"expect", b"100-continue"))
        assert (expecting.status, expecting.taken) == (413, 0)

    run(check())


def test_uploads_at_a_time() -> None:
    """Two of one address and six of all; the next waits. They leave the address's part of other bodies alone."""

    async def check() -> None:
        app = make_app(max_body_bytes=10, threads=8)  # of which an address gets two
        block = bytes(8 * MIB)
        goes_on = asyncio.Event()

        async def held() -> AsyncIterator[bytes]:
            yield block
            await goes_on.wait()

        holders = [
            asyncio.create_task(Client(app, address=f"10.0.0.{number // 2}").post(held(), query=UPLOAD)) for number in range(6)
        ]
        await settle()
        waiting = [Client(app, address=address) for address in ("10.0.0.1", "10.0.0.9")]
        tasks = [asyncio.create_task(client.post(chunks(1), query=UPLOAD)) for client in waiting]
        await settle()
        assert [client.taken for client in waiting] == [0, 0]
        other = Client(app, address="10.0.0.1")
        await other.post(chunks(1))
        assert other.status == 200
        goes_on.set()
        await asyncio.gather(*holders, *tasks)
        assert [client.status for client in waiting] == [200, 200]
        slow = Client(app)
        assert 299 < await slow.post(chunks(100, pause=10), query=UPLOAD) < 301
        assert slow.status == 408
        stalled = Client(app)
        assert 19 < await stalled.post(stalling(), query=UPLOAD) < 21
        assert stalled.status == 408
        too_large = Client(app)
        await too_large.post(chunks(2, block), query=UPLOAD)
        assert too_large.status == 413

    run(check())


def test_upload_waits_for_its_turn_for_five_minutes() -> None:
    async def check() -> None:
        app = make_app()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(10)

        holders = [asyncio.create_task(Client(app).post(endless(), query=UPLOAD)) for _ in range(2)]
        await asyncio.sleep(10)
        later = [asyncio.create_task(Client(app).post(endless(), query=UPLOAD)) for _ in range(2)]
        await settle()
        waiting = Client(app)
        assert 299 < await waiting.post(chunks(1), query=UPLOAD) < 301
        assert (waiting.status, waiting.taken) == (408, 0)
        for task in (*holders, *later):
            task.cancel()

    run(check())


@pytest.mark.parametrize(
    ("seconds", "address", "ended"), [(59, "10.0.0.9", 0), (61, "10.0.0.9", 1), (61, "10.0.0.1", 0), (61, "", 0)]
)
def test_upload_takes_a_minute_at_most_while_others_wait(seconds: float, address: str, ended: int) -> None:
    """Not while one of an address waits that has its two, nor for one that has given up."""

    async def check() -> None:
        app = make_app(threads=16)

        async def slow() -> AsyncIterator[bytes]:
            for pause in (19, 19, 19, seconds - 57):
                yield b"x"
                await asyncio.sleep(pause)
            yield b"x"

        holders = [Client(app, address=f"10.0.0.{number // 2}") for number in range(6)]
        tasks = [asyncio.create_task(client.post(slow(), query=UPLOAD)) for client in holders]
        await settle()
        waiting = Client(app, address=address or "10.0.0.9")
        turn = asyncio.create_task(waiting.post(chunks(1), query=UPLOAD))
        await settle()
        if not address:
            turn.cancel()
        await asyncio.gather(*tasks, turn, return_exceptions=True)
        assert sorted(client.status for client in holders) == [200] * (6 - ended) + [408] * ended
        assert waiting.status == (200 if address else 0)

    run(check())


@pytest.mark.parametrize("size", ["small", "large"])
def test_bodies_in_memory(size: str) -> None:
    """A quarter for one address, until their requests end. Large bodies leave room for small ones, and the other way round."""

    async def check() -> None:
        app = make_app(max_body_bytes=20 * MIB)
        small = bytes(64 * 1024)
        bodies, body = (1, [small, bytes(8 * MIB), bytes(8 * MIB)]) if size == "large" else (64, [small])

        async def waiting() -> AsyncIterator[bytes]:
            for block in body:
                yield block
            await asyncio.Event().wait()

        async def refusal(address: str, number: int) -> str:
            client = Client(app, address=address)
            await client.post(chunks(number, small))
            return "" if client.status == 200 else client.code

        held = [
            asyncio.create_task(Client(app, address=f"10.0.0.{number}").post(waiting()))
            for number in range(4)
            for _ in range(bodies)
        ]
        await settle()
        number = 2 if size == "large" else 1
        assert [await refusal("10.0.0.1", number), await refusal("10.0.0.9", number)] == ["too_many_requests", "service_busy"]
        held.pop().cancel()
        await settle()
        assert await refusal("10.0.0.1", number) == "too_many_requests"
        # While the test waits for a thread, the bodies time out: no more checks after this one.
        assert await (refusal("10.0.0.1", 1) if size == "large" else refusal("10.0.0.9", 1)) == ""
        for task in held:
            task.cancel()

    run(check())


# Responses


@pytest.mark.parametrize(("path", "seconds"), [("/stream", 30), ("/json", 75)])
def test_response_that_never_begins(path: str, seconds: float) -> None:
    async def check() -> None:
        client = Client(make_app(), path)
        assert seconds - 0.1 < await client.post() < seconds + 0.5
        assert (client.status, client.code) == (503, "service_busy")
        assert client.headers[b"retry-after"] == b"5"

    run(check())


def test_silent_stream_says_every_ten_seconds_that_it_is_alive() -> None:
    async def check() -> None:
        client = Client(make_app(), "/stream-after-a-word", patience=4)
        assert 29.9 < await client.post() < 30.5
        assert client.status == 200
        assert client.body == [b"data: word\n\n", *[b": keep-alive\n\n"] * 3, b""]

    run(check())


def test_view_that_leaves_its_body_and_produces_none() -> None:
    async def check() -> None:
        client = Client(make_app(), "/nothing")
        await client.post()
        assert (client.status, client.code) == (404, "not_found")

    run(check())


def test_error_before_the_first_event_is_an_answer_and_one_after_it_ends_the_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> None:
        client = Client(make_app(), "/error")
        await client.post()
        assert (client.status, client.code) == (429, "too_many_requests")
        client = Client(make_app(), "/error-after-a-word")
        await client.post()
        assert (client.status, client.body) == (200, [b"data: word\n\n"]), "the end of the body is missing"

    run(check())
    assert caplog.text.count("a response ended early") == 1


def test_interrupted_stream_that_has_not_begun() -> None:
    async def check() -> None:
        app = make_app()
        client = Client(app, "/stream")
        answer = asyncio.create_task(client.post())
        while not app.asgi._producers:
            await asyncio.sleep(0)
        app.asgi.interrupt()
        await answer
        assert (client.status, client.code) == (503, "service_busy")
        assert not app.asgi._producers

    run(check())


def test_stream_that_begins_after_the_interruption() -> None:
    """gunicorn still accepts requests for up to a second then."""

    async def check() -> None:
        app = make_app()
        app.asgi.interrupt()
        client = Client(app, "/stream")
        assert await client.post() < 1
        assert (client.status, client.code) == (503, "service_busy")

    run(check())


def test_response_outlives_its_client() -> None:
    """It is closed, which ends what its view holds, when all of it has been produced."""
    produced.clear()

    async def check() -> None:
        app = make_app()
        client = Client(app, "/outliving", patience=3)
        assert await client.post() < 5
        assert app.asgi.is_busy
        await asyncio.sleep(20)
        assert produced == []
        while app.asgi.is_busy:
            await asyncio.sleep(1)
        assert produced == ["finished", "closed"]

    run(check())


def test_response_that_has_not_begun_outlives_its_client() -> None:
    """A message may wait seconds for the active run of its thread, and is stored only then."""
    produced.clear()

    async def check() -> None:
        app = make_app()
        client = Client(app, "/outliving-slowly", patience=0)
        client.left.set()
        assert await client.post() < 1
        assert (client.status, produced, app.asgi.is_busy) == (0, [], True)
        while app.asgi.is_busy:
            await asyncio.sleep(1)
        assert produced == ["finished", "closed"]

    run(check())


def test_response_that_fails_without_a_client_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        app = make_app()
        client = Client(app, "/outliving-and-failing", patience=0)
        client.left.set()
        await client.post()
        while app.asgi.is_busy:
            await asyncio.sleep(1)
        assert client.status == 0

    run(check())
    assert "a response without a reader failed" in caplog.text


def test_outliving_response_that_does_not_begin_in_time_is_cancelled() -> None:
    """The client is told that it failed, and may repeat it."""

    async def check() -> None:
        app = make_app()
        client = Client(app, "/outliving-in-silence")
        assert 29.9 < await client.post() < 30.5
        assert (client.status, client.code, app.asgi.is_busy) == (503, "service_busy", False)

    run(check())


def test_response_that_was_stopped_before_is_not_interrupted() -> None:
    async def check() -> None:
        app = make_app()
        await Client(app, "/outliving", patience=3).post()
        ((producer, buffer),) = app.asgi._producers.items()
        producer.cancel()
        app.asgi.interrupt()
        assert not buffer.interrupted

    run(check())


def test_shutdown_interrupts_a_response_without_a_client() -> None:
    produced.clear()

    async def check() -> None:
        app = make_app()
        await Client(app, "/outliving", patience=3).post()
        (buffer,) = app.asgi._producers.values()
        assert not buffer.interrupted
        app.asgi.interrupt()
        app.asgi.interrupt()
        while app.asgi.is_busy:
            await asyncio.sleep(0.01)
        assert (buffer.interrupted, produced) == (True, ["closed"])

    run(check())


def test_client_that_leaves_before_the_response_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        app = make_app()
        client = Client(app, "/stream", patience=0)
        client.left.set()
        await client.post()
        in_its_body = Client(app)
        in_its_body.left.set()
        await in_its_body.post(chunks(1))
        assert (client.status, in_its_body.status) == (0, 0)

    run(check())
    assert caplog.text.count("the client disconnected before the response began") == 2


def test_websocket_is_refused() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    run(make_app().asgi({"type": "websocket"}, receive, send))
    assert sent == [{"type": "websocket.close"}]


# Readiness


def test_process_that_drains_is_not_ready() -> None:
    async def check() -> None:
        app = make_app()
        app.asgi.draining = True
        client = Client(app, "/readyz")
        await client.post()
        assert b"Not ready. The process is shutting down" in b"".join(client.body)

    run(check())


def test_readiness_check_takes_less_than_a_second() -> None:
    released = threading.Event()

    def missing() -> list[str]:
        released.wait(10)
        return []

    async def check() -> None:
        client = Client(make_app(missing), "/readyz")
        try:
            assert 0.5 < await client.post() < 1
        finally:
            released.set()
        assert b"Not ready. The check timed out" in b"".join(client.body)

    run(check())


def test_readiness_check_serves_for_a_second() -> None:
    checks: list[str] = []

    def missing() -> list[str]:
        checks.append("made")
        return []

    async def check() -> None:
        app = make_app(missing)
        await asyncio.gather(*(Client(app, "/readyz").post() for _ in range(3)))
        await Client(app, "/readyz").post()
        assert len(checks) == 1
        await asyncio.sleep(1.1)
        await Client(app, "/readyz").post()
        assert len(checks) == 2

    asyncio.run(check())
