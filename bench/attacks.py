"""The attacks of ``bench.mixed``. Each runs in a separate process until a given time.

Attackers have their own addresses and sessions, and stay within the limits that an operator may have set.
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

from tests.support.load import Visitor, call, create_visitors, idle_connections, message, read_stream, request_head

CHAT = "/api/chatkit"
APPLICATION_NAME = "bench"  # of our database connections
AUDIO = {"audio_base64": "UklGRg==", "mime_type": "audio/wav"}


@dataclass(frozen=True)
class Target:
    """The ports of the self-hosted and the hosted service, or of nginx in front of them, and the database."""

    port: int
    hosted_port: int
    database: str


@dataclass
class AttackResult:
    """The count of each status (0: disconnected without one), and the periods in which the attack blocked something."""

    statuses: Counter[int] = field(default_factory=Counter)
    blocked: list[tuple[float, float]] = field(default_factory=list)


Attack = Callable[[Target, float], Awaitable[AttackResult]]


async def _repeat_until(until: float, pause: float, once: Callable[[], Awaitable[int | None]], result: AttackResult) -> None:
    """Call ``once`` repeatedly, and cancel it at ``until``."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
            while True:
                status = await once()
                if status is not None:
                    result.statuses[status] += 1
                await asyncio.sleep(pause)


async def _repeat_concurrently(until: float, pause: float, each: Sequence[Callable[[], Awaitable[int | None]]]) -> AttackResult:
    result = AttackResult()
    await asyncio.gather(*(_repeat_until(until, pause, once, result) for once in each))
    return result


def _poster(port: int, body: bytes, visitor: Visitor, path: str = CHAT) -> Callable[[], Awaitable[int]]:
    async def once() -> int:
        return (await call(port, "POST", path, body, visitor)).status

    return once


def _chat_request(type_: str, **params: object) -> bytes:
    return json.dumps({"type": type_, "params": params}).encode()


async def no_attack(_target: Target, until: float) -> AttackResult:
    await asyncio.sleep(until - time.monotonic())
    return AttackResult()


@dataclass(frozen=True)
class Blocking:
    """An agent that repeatedly blocks the event loop of one worker for ``seconds``."""

    seconds: float

    async def __call__(self, target: Target, until: float) -> AttackResult:
        result = AttackResult()
        [visitor] = await create_visitors(target.port, 1, network=10)
        while time.monotonic() < until:
            started = time.monotonic()
            reply = await read_stream(target.port, visitor, f"block {self.seconds}")
            result.statuses[reply.status] += 1
            result.blocked.append((started, time.monotonic()))
            await asyncio.sleep(5)
        return result


async def table_lock(target: Target, until: float) -> AttackResult:
    """A transaction locks the threads table for eight seconds, while twenty callers create threads."""
    visitors = await create_visitors(target.port, 20, network=11)
    result = AttackResult()

    async def lock() -> None:
        while time.monotonic() < until:
            started = time.monotonic()
            async with await psycopg.AsyncConnection.connect(target.database, application_name=APPLICATION_NAME) as connection:
                await connection.execute("LOCK TABLE chat_threads IN ACCESS EXCLUSIVE MODE")
                await asyncio.sleep(8)
            result.blocked.append((started, time.monotonic()))
            await asyncio.sleep(7)

    async def callers() -> None:
        result.statuses = (
            await _repeat_concurrently(until, 1, [_poster(target.port, message("Hello"), visitor) for visitor in visitors])
        ).statuses

    await asyncio.gather(lock(), callers())
    return result


async def small_pool(target: Target, until: float) -> AttackResult:
    """Sixty callers use the database at the same time, with a pool of four connections in each worker."""
    visitors = await create_visitors(target.port, 60, network=12)
    each = [_poster(target.port, _chat_request("threads.list", limit=20), visitor) for visitor in visitors]
    return await _repeat_concurrently(until, 0.4, each)


async def hanging_openai(target: Target, until: float) -> AttackResult:
    """OpenAI does not respond to 120 turns, 30 dictations and, on the hosted backend, 300 calls for a session."""
    visitors = await create_visitors(target.port, 60, network=13)
    dictation = _chat_request("input.transcribe", **AUDIO)
    hosted = [Visitor("", f"10.14.0.{index % 75 + 1}") for index in range(300)]
    return await _repeat_concurrently(
        until,
        1,
        [
            *(_poster(target.port, message("hangs"), visitor) for visitor in visitors * 2),
            *(_poster(target.port, dictation, visitor) for visitor in visitors[:30]),
            *(_poster(target.hosted_port, b"", visitor, "/api/chatkit/sessions") for visitor in hosted),
        ],
    )


async def feedback_flood(target: Target, until: float) -> AttackResult:
    """One visitor gives feedback over 16 connections: on 2,100 items (62 KB), and on the allowed maximum of 100."""
    [visitor] = await create_visitors(target.port, 1, network=15)
    reply = await read_stream(target.port, visitor)
    thread = reply.received.partition(b'"thread":{"id":"')[2].partition(b'"')[0].decode()

    def feedback(items: int) -> bytes:
        ids = [f"msg_{index:022}" for index in range(items)]
        return _chat_request("items.feedback", thread_id=thread, item_ids=ids, kind="positive")

    return await _repeat_concurrently(until, 0, 8 * [_poster(target.port, feedback(n), visitor) for n in (2_100, 100)])


async def large_bodies(target: Target, until: float) -> AttackResult:
    """Six connections at two addresses send 8 MiB of JSON that is not dictation."""
    visitors = await create_visitors(target.port, 2, network=16)
    start, end = b'{"type":"threads.list","params":{},"metadata":{"x":[', b"0]}}"
    body = start + b"0," * ((8 * 2**20 - len(start) - len(end)) // 2) + end
    return await _repeat_concurrently(until, 0.1, 3 * [_poster(target.port, body, visitor) for visitor in visitors])


async def slow_clients(target: Target, until: float) -> AttackResult:
    """500 connections with an incomplete head, 100 with an incomplete body, and 40 that do not read half a megabyte."""
    visitors = await create_visitors(target.port, 20, network=17)

    async def idle() -> None:
        await idle_connections(target.port, 500, 22)

    def send_slowly(visitor: Visitor) -> Callable[[], Awaitable[int]]:
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

    def read_nothing(visitor: Visitor) -> Callable[[], Awaitable[None]]:
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

    each = [idle, *map(send_slowly, visitors * 5), *map(read_nothing, visitors * 2)]
    return await _repeat_concurrently(until, 1, each)


async def greedy_addresses(target: Target, until: float) -> AttackResult:
    """Two addresses with 46 visitors each, each of whom starts six turns that hang."""
    visitors = await create_visitors(target.port, 92, addresses=2, network=18)
    return await _repeat_concurrently(until, 1, 6 * [_poster(target.port, message("hangs"), visitor) for visitor in visitors])


def run(attack: Attack, target: Target, seconds: float) -> AttackResult:
    async def attack_until() -> AttackResult:
        return await attack(target, time.monotonic() + seconds)

    return asyncio.run(attack_until())
