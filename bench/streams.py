"""The second half of ``make bench``: a hundred streams at once, beside OpenAI's starter design, in one run.

``python -m bench.streams 10`` keeps the load on our service for ten minutes and prints its memory.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field

import requests

from bench.sessions import PROCFILE, UVICORN, Server, running
from tests.chat import user_input
from tests.service import environment

STREAMS = 100
BODY = json.dumps({"type": "threads.create", "params": {"input": user_input("Hello")}}).encode()


@dataclass
class Seen:
    """What the readers saw. Times in seconds."""

    complete: int = 0
    broken: int = 0
    first: list[float] = field(default_factory=list)
    longest_gap: float = 0


async def _read_stream(port: int, secret: str, seen: Seen) -> None:
    started = last = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /api/chatkit HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    received, first = b"", 0.0
    while part := await reader.read(65536):
        now = time.monotonic()
        if b"data: " in part:
            if not first:
                first = now - started
            else:
                seen.longest_gap = max(seen.longest_gap, now - last)
            last = now
        received += part
    writer.close()
    if received.count(b"text_delta") == 10 and b'"thread.item.done","item":{"id":"msg' in received and first:
        seen.complete += 1
        seen.first.append(first)
    else:
        seen.broken += 1


async def _reader(port: int, secret: str, seen: Seen, until: float) -> None:
    while time.monotonic() < until:
        await _read_stream(port, secret, seen)


async def readers(port: int, secrets: list[str], seconds: float) -> Seen:
    """A reader a secret, each with one stream after another."""
    seen = Seen()
    await asyncio.gather(*(_reader(port, secret, seen, time.monotonic() + seconds) for secret in secrets))
    return seen


def mint(server: Server, number: int) -> list[str]:
    url = f"http://127.0.0.1:{server.port}/api/chatkit/sessions"
    return [requests.post(url, timeout=10).json()["data"]["client_secret"] for _ in range(number)]


def measure(name: str, server: Server, secrets: list[str], seconds: float) -> tuple[float, float]:
    asyncio.run(readers(server.port, secrets, 2))  # warm up
    before = server.cpu()
    seen = asyncio.run(readers(server.port, secrets, seconds))
    cpu = (server.cpu() - before) / max(seen.complete, 1) * 1000
    first = statistics.median(seen.first) * 1000
    p99 = sorted(seen.first)[int(len(seen.first) * 0.99)] * 1000
    print(
        f"  {name:30} {seen.complete:5} streams, {seen.broken} broken  {cpu:5.2f} ms CPU each  "
        f"first event p50 {first:3.0f} ms, p99 {p99:3.0f} ms  longest gap {seen.longest_gap * 1000:3.0f} ms  "
        f"{server.memory():3.0f} MB",
        flush=True,
    )
    return cpu, first


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 0
    ours = [*PROCFILE[:-1], "bench.stream_app:app"]
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(
            CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{folder}/chatkit.db", WEB_CONCURRENCY="2", LOG_LEVEL="INFO"
        )
        print(f"{STREAMS} streams at once, two workers, ten words each, 100 ms apart")
        with running(ours, variables) as server:
            server.wait()
            secrets = mint(server, STREAMS)
            cpu, first = measure("this service, SQLite", server, secrets, 15)
            for minute in range(int(minutes)):
                measure(f"  after {minute} minutes more", server, mint(server, STREAMS), 58)
        if not minutes:
            with running([*UVICORN, "bench.stream_peer:app"], variables) as server:
                server.wait()
                peer_cpu, peer_first = measure("FastAPI, their SDK, in memory", server, [""] * STREAMS, 15)
            print(f"  ours to theirs: CPU {cpu / peer_cpu:.2f}x, time to first event {first / peer_first:.2f}x")


if __name__ == "__main__":
    main()
