"""A load generator: many concurrent callers that use little CPU themselves."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.support.chat import user_input


@dataclass
class Outcome:
    """The results of the callers. Times are in seconds."""

    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    reset: int = 0
    """Those of the lost whose new connection was reset. A connection that no process has accepted is, when the port closes."""
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0

    def count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[int(share * (len(self.latencies) - 1))]


async def _call(
    port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, headers: str
) -> tuple[int, bool]:
    """Make a call without a body. Return the status, and whether the connection stays open."""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n{headers}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return int(head[9:12]), b"connection: close" not in head


async def _caller(
    port: int, outcome: Outcome, until: float, calls: int, pause: float, keep_alive: bool, method: str, path: str, headers: str
) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while calls and time.monotonic() < until:
        calls -= 1
        started = time.monotonic()
        is_new = connection is None
        try:
            connection = connection or await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return  # refused, so not lost
        try:
            status, stays_open = await _call(port, *connection, method, path, headers)
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome.lost += 1
            outcome.reset += is_new and isinstance(error, ConnectionResetError)
            connection = None
            continue
        outcome.count(status)
        outcome.latencies.append(time.monotonic() - started)
        if not stays_open or not keep_alive:
            connection[1].close()
            connection = None
        await asyncio.sleep(pause)
    if connection:
        connection[1].close()


async def callers(
    port: int,
    number: int,
    *,
    seconds: float = 600,
    calls: int = 10**9,
    method: str = "POST",
    path: str = "/api/chatkit/sessions",
    authorization: str = "",
    addresses: int = 25,
    pause: float = 0,
    keep_alive: bool = True,
) -> Outcome:
    """Run ``number`` concurrent callers, each until ``seconds`` have passed or its ``calls`` are done.

    They claim ``addresses`` different addresses in ``X-Forwarded-For``, and wait for ``pause`` seconds after each call.
    """
    outcome = Outcome()
    token = f"Authorization: {authorization}\r\n" if authorization else ""
    started = time.monotonic()
    headers = [f"{token}X-Forwarded-For: 10.1.{index // 250}.{index % 250 + 1}\r\n" for index in range(addresses)]
    await asyncio.gather(
        *(
            _caller(port, outcome, started + seconds, calls, pause, keep_alive, method, path, headers[index % addresses])
            for index in range(number)
        )
    )
    outcome.seconds = time.monotonic() - started
    return outcome


@dataclass(frozen=True)
class Visitor:
    """An anonymous user with a chat session, at one address."""

    secret: str = ""
    address: str = "10.1.0.1"


@dataclass
class Reply:
    """The response to one request. Times are in seconds."""

    status: int = 0
    """0 if the connection failed or ended before there was a status."""
    received: bytes = b""
    started: float = field(default_factory=time.monotonic)
    first: float = 0
    """Until the first event."""
    longest_gap: float = 0
    """Between two events."""
    seconds: float = 0

    @property
    def complete_stream(self) -> bool:
        """Whether this is a stream with all ten words and the last event."""
        return self.received.count(b"text_delta") == 10 and b'"thread.item.done","item":{"id":"msg' in self.received

    def json(self) -> Any:
        return json.loads(self.received.partition(b"\r\n\r\n")[2])


async def call(port: int, method: str, path: str, body: bytes = b"", visitor: Visitor = Visitor()) -> Reply:
    """Make one request on a new connection."""
    reply = Reply()
    last = 0.0
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head(method, path, len(body), visitor) + body)
        while part := await reader.read(65536):
            now = time.monotonic()
            if b"data: " in part:
                if reply.first:
                    reply.longest_gap = max(reply.longest_gap, now - last)
                else:
                    reply.first = now - reply.started
                last = now
            reply.received += part
    except OSError:
        pass
    finally:
        if writer:
            writer.close()
    reply.status = int(reply.received[9:12] or 0)
    reply.seconds = time.monotonic() - reply.started
    return reply


def request_head(method: str, path: str, length: int, visitor: Visitor, connection: str = "close") -> bytes:
    bearer = f"Authorization: Bearer {visitor.secret}\r\n" if visitor.secret else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}"
        f"X-Forwarded-For: {visitor.address}\r\nContent-Type: application/json\r\nConnection: {connection}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def message(text: str) -> bytes:
    """Return the body of a request that creates a thread with the message ``text``."""
    return json.dumps({"type": "threads.create", "params": {"input": user_input(text)}}).encode()


async def create_visitors(port: int, number: int, addresses: int = 25, network: int = 2) -> list[Visitor]:
    """Create visitors at ``addresses`` addresses of 10.network.0.0/16, each with a session."""
    semaphore = asyncio.Semaphore(8)

    async def one(index: int) -> Visitor:
        address = f"10.{network}.{index % addresses // 250}.{index % addresses % 250 + 1}"
        async with semaphore:
            reply = await call(port, "POST", "/api/chatkit/sessions", visitor=Visitor("", address))
        assert reply.status == 200, reply.received
        return Visitor(reply.json()["data"]["client_secret"], address)

    return await asyncio.gather(*(one(index) for index in range(number)))


@dataclass
class Streams:
    """The results of stream readers. Times are in seconds."""

    complete: int = 0
    broken: int = 0
    """Refused, or without the last event."""
    statuses: Counter[int] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    longest_gap: float = 0

    def percentile(self, share: float) -> float:
        return sorted(self.first)[int(share * (len(self.first) - 1))] if self.first else float("nan")

    def count(self, reply: Reply) -> None:
        self.statuses[reply.status] += 1
        if reply.complete_stream:
            self.complete += 1
            self.first.append(reply.first)
            self.longest_gap = max(self.longest_gap, reply.longest_gap)
        else:
            self.broken += 1

    def add(self, other: Streams) -> None:
        self.complete += other.complete
        self.broken += other.broken
        self.statuses += other.statuses


async def read_stream(port: int, visitor: Visitor, text: str = "Hello") -> Reply:
    """Create a thread and read its stream to the end."""
    return await call(port, "POST", "/api/chatkit", message(text), visitor)


async def readers(port: int, visitors: list[Visitor], seconds: float) -> Streams:
    """Let each visitor read streams one after another for ``seconds``, and at least one."""
    seen = Streams()
    until = time.monotonic() + seconds

    async def reader(visitor: Visitor) -> None:
        while True:
            seen.count(await read_stream(port, visitor))
            if time.monotonic() >= until:
                return

    await asyncio.gather(*(reader(visitor) for visitor in visitors))
    return seen


async def idle_connections(port: int, number: int, seconds: float) -> int:
    """Open connections that send nothing or, every other one, a header byte per second. Return how many are open at the end."""
    connections = []
    for index in range(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if index % 2:
            writer.write(b"GET /healthz HTTP/1.1\r\nX-Drip: ")
        connections.append((reader, writer))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(1)
        for _, writer in connections[1::2]:
            if not writer.is_closing():
                writer.write(b"x")
    still_open = sum(not writer.is_closing() and not reader.at_eof() for reader, writer in connections)
    for _, writer in connections:
        writer.close()
    return still_open
