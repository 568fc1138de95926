"""Callers, many at once and cheap enough to leave the processor to what is measured."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What the callers saw. Times in seconds."""

    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0

    def count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[int(share * (len(self.latencies) - 1))]


async def _call(
    port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, more: str
) -> tuple[int, bool]:
    """The answer's status, and whether the connection goes on."""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n{more}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return int(head[9:12]), b"connection: close" not in head


async def _caller(port: int, outcome: Outcome, until: float, calls: int, method: str, path: str, more: str) -> None:
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while calls and time.monotonic() < until:
        calls -= 1
        started = time.monotonic()
        try:
            connection = connection or await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return  # refused: nothing was accepted, so nothing is lost
        try:
            status, goes_on = await _call(port, *connection, method, path, more)
        except (OSError, asyncio.IncompleteReadError):
            outcome.lost += 1
            connection = None
            continue
        outcome.count(status)
        outcome.latencies.append(time.monotonic() - started)
        if not goes_on:
            connection[1].close()
            connection = None
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
    addresses: int = 1,
) -> Outcome:
    """``number`` callers at once, each calling again and again until ``seconds`` or its ``calls`` are over.

    They come from so many ``addresses``, as a proxy in front says it.
    """
    outcome = Outcome()
    more = f"Authorization: {authorization}\r\n" if authorization else ""
    started = time.monotonic()
    from_there = [f"{more}X-Forwarded-For: 10.1.{one // 250}.{one % 250 + 1}\r\n" for one in range(addresses)]
    await asyncio.gather(
        *(_caller(port, outcome, started + seconds, calls, method, path, from_there[one % addresses]) for one in range(number))
    )
    outcome.seconds = time.monotonic() - started
    return outcome
