"""What goes wrong on purpose in ``bench.mixed``. Each attack goes on until a moment, in a process of its own.

Attackers have addresses and sessions of their own, and stay within the limits that an operator may have set.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from bench.load import Visitor, call, idle_connections, message, mint, read_stream, request_head

CHAT = "/api/chatkit"
OUR_NAME = "bench"  # to the database
AUDIO = {"audio_base64": "UklGRg==", "mime_type": "audio/wav"}


@dataclass(frozen=True)
class Target:
    """Where to: the port of the self-hosted service and that of the hosted one, both perhaps nginx's, and the database."""

    port: int
    hosted_port: int
    database: str


@dataclass
class Done:
    """What an attack has seen: how often each status came (0: cut off without one), and when it blocked something."""

    statuses: Counter[int] = field(default_factory=Counter)
    blocked: list[tuple[float, float]] = field(default_factory=list)


Attack = Callable[[Target, float], Awaitable[Done]]


async def _again_and_again(until: float, pause: float, once: Callable[[], Awaitable[int | None]], done: Done) -> None:
    """Do ``once`` until then, and leave at that moment."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
            while True:
                status = await once()
                if status is not None:
                    done.statuses[status] += 1
                await asyncio.sleep(pause)


async def _together(until: float, pause: float, each: Sequence[Callable[[], Awaitable[int | None]]]) -> Done:
    done = Done()
    await asyncio.gather(*(_again_and_again(until, pause, once, done) for once in each))
    return done


def _post(port: int, body: bytes, visitor: Visitor, path: str = CHAT) -> Callable[[], Awaitable[int]]:
    async def once() -> int:
        return (await call(port, "POST", path, body, visitor)).status

    return once


def _ask(type_: str, **params: object) -> bytes:
    return json.dumps({"type": type_, "params": params}).encode()


async def nothing(_target: Target, until: float) -> Done:
    await asyncio.sleep(until - time.monotonic())
    return Done()


@dataclass(frozen=True)
class Blocking:
    """An agent that blocks the event loop of one worker for so long, again and again."""

    seconds: float

    async def __call__(self, target: Target, until: float) -> Done:
        done = Done()
        [visitor] = await mint(target.port, 1, network=10)
        while time.monotonic() < until:
            began = time.monotonic()
            reply = await read_stream(target.port, visitor, f"block {self.seconds}")
            done.statuses[reply.status] += 1
            done.blocked.append((began, time.monotonic()))
            await asyncio.sleep(5)
        return done


async def table_lock(target: Target, until: float) -> Done:
    """Somebody's transaction locks the table of threads for eight seconds, while twenty callers begin threads."""
    visitors = await mint(target.port, 20, network=11)
    done = Done()

    async def lock() -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            async with await psycopg.AsyncConnection.connect(target.database, application_name=OUR_NAME) as connection:
                await connection.execute("LOCK TABLE chat_threads IN ACCESS EXCLUSIVE MODE")
                await asyncio.sleep(8)
            done.blocked.append((began, time.monotonic()))
            await asyncio.sleep(7)

    async def callers() -> None:
        done.statuses = (
            await _together(until, 1, [_post(target.port, message("Hello"), visitor) for visitor in visitors])
        ).statuses

    await asyncio.gather(lock(), callers())
    return done


async def small_pool(target: Target, until: float) -> Done:
    """Sixty callers want the database at the same time, on a pool of four connections in each worker."""
    visitors = await mint(target.port, 60, network=12)
    each = [_post(target.port, _ask("threads.list", limit=20), visitor) for visitor in visitors]
    return await _together(until, 0.4, each)


async def hanging_openai(target: Target, until: float) -> Done:
    """OpenAI does not respond: 120 answers, 30 dictations, and on the hosted backend 300 callers who want a session."""
    visitors = await mint(target.port, 60, network=13)
    dictation = _ask("input.transcribe", **AUDIO)
    hosted = [Visitor("", f"10.14.0.{index % 75 + 1}") for index in range(300)]
    return await _together(
        until,
        1,
        [
            *(_post(target.port, message("hangs"), visitor) for visitor in visitors * 2),
            *(_post(target.port, dictation, visitor) for visitor in visitors[:30]),
            *(_post(target.hosted_port, b"", visitor, "/api/chatkit/sessions") for visitor in hosted),
        ],
    )


async def feedback_flood(target: Target, until: float) -> Done:
    """One visitor gives feedback over 16 connections: on as many items as 62 KB name, and on as many as are allowed."""
    [visitor] = await mint(target.port, 1, network=15)
    reply = await read_stream(target.port, visitor)
    thread = reply.received.partition(b'"thread":{"id":"')[2].partition(b'"')[0].decode()

    def feedback(items: int) -> bytes:
        ids = [f"msg_{index:022}" for index in range(items)]
        return _ask("items.feedback", thread_id=thread, item_ids=ids, kind="positive")

    return await _together(until, 0, 8 * [_post(target.port, feedback(n), visitor) for n in (2_100, 100)])


async def large_bodies(target: Target, until: float) -> Done:
    """Six connections at two addresses send 8 MiB of JSON that is no dictation."""
    visitors = await mint(target.port, 2, network=16)
    start, end = b'{"type":"threads.list","params":{},"metadata":{"x":[', b"0]}}"
    body = start + b"0," * ((8 * 2**20 - len(start) - len(end)) // 2) + end
    return await _together(until, 0.1, 3 * [_post(target.port, body, visitor) for visitor in visitors])


async def slow_clients(target: Target, until: float) -> Done:
    """500 connections without a whole head, 100 without a whole body, and 40 that don't read half a megabyte."""
    visitors = await mint(target.port, 20, network=17)

    async def idle() -> None:
        await idle_connections(target.port, 500, 22)

    def drips(visitor: Visitor) -> Callable[[], Awaitable[int]]:
        async def once() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            try:
                writer.write(request_head("POST", CHAT, 1000, visitor))
                reading = asyncio.create_task(reader.read(12))
                while not reading.done() and not writer.is_closing():
                    writer.write(b"x")
                    await asyncio.wait([reading], timeout=1)
                return int((await reading)[9:] or 0)
            finally:
                writer.close()

        return once

    def reads_nothing(visitor: Visitor) -> Callable[[], Awaitable[None]]:
        async def once() -> None:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(client, ("127.0.0.1", target.port))
                body = message("speaks-long")
                await loop.sock_sendall(client, request_head("POST", CHAT, len(body), visitor) + body)
                await asyncio.sleep(30)

        return once

    each = [idle, *map(drips, visitors * 5), *map(reads_nothing, visitors * 2)]
    return await _together(until, 1, each)


async def greedy_addresses(target: Target, until: float) -> Done:
    """Two addresses, 46 visitors each, want six answers each that hang."""
    visitors = await mint(target.port, 92, addresses=2, network=18)
    return await _together(until, 1, 6 * [_post(target.port, message("hangs"), visitor) for visitor in visitors])


def run(attack: Attack, target: Target, seconds: float) -> Done:
    """Attack for so long."""

    async def attacking() -> Done:
        return await attack(target, time.monotonic() + seconds)

    return asyncio.run(attacking())
