"""1,000 streams at once for a while: none may break, and the memory of the workers stays flat.

``python -m bench.endurance [--minutes 10] [--postgresql]``
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack

from bench.load import Streams, Visitor, mint, read_stream
from bench.server import Server, postgres, running
from bench.streams import OURS, STREAMS_OF_A_USER
from tests.service import environment

STREAMS = 1_000
REPORT_SECONDS = 30
SESSION_SECONDS = 400  # of the 600 that a session lives
GROWTH = 1.1  # of the workers' memory, from the first half to the second; the first half minute does not count


async def endure(server: Server, minutes: float) -> list[str]:
    """Keep the load on ``server``, and say what went wrong."""
    started = time.monotonic()
    until = started + minutes * 60
    seen, total = Streams(), Streams()
    who: list[Visitor] = []

    async def sign_in() -> None:
        while True:
            who[:] = await mint(server.port, STREAMS // STREAMS_OF_A_USER)
            await asyncio.sleep(SESSION_SECONDS)

    async def reader(index: int) -> None:
        await asyncio.sleep(index / STREAMS * 10)  # one after another, so that a tenth of them begins each second
        while time.monotonic() < until:
            reply = await read_stream(server.port, who[index // STREAMS_OF_A_USER])
            seen.count(reply)

    signing_in = asyncio.create_task(sign_in())
    while not who:
        await asyncio.sleep(0.1)
    reading = asyncio.gather(*(reader(index) for index in range(STREAMS)))
    sizes = []
    while not reading.done():
        await asyncio.wait([reading], timeout=REPORT_SECONDS)
        sizes.append(server.workers())
        total.add(seen)
        shown = ", ".join(f"{size:.0f}" for size in sizes[-1].values())
        print(
            f"  after {time.monotonic() - started:4.0f} s: {seen.complete} streams more, {seen.broken} broken, first event p50 "
            f"{seen.percentile(0.5):5.3f} s, p99 {seen.percentile(0.99):5.3f} s, workers {shown} MB",
            flush=True,
        )
        seen = Streams()
    signing_in.cancel()
    wrong = []
    if total.broken:
        wrong.append(f"{total.broken} of {total.broken + total.complete} streams broke; statuses: {dict(total.statuses)}")
    if any(found.keys() != sizes[0].keys() for found in sizes):
        wrong.append("a worker was replaced")
    sums = [sum(found.values()) for found in sizes[1:]]
    half = len(sums) // 2
    if half and max(sums[half:]) > GROWTH * max(sums[:half]):
        wrong.append(f"memory grew from {max(sums[:half]):.0f} to {max(sums[half:]):.0f} MB")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        variables = environment(
            CHATKIT_BACKEND="selfhosted",
            DATABASE_URL=stack.enter_context(postgres()) if asked.postgresql else f"sqlite:///{folder}/chatkit.db",
            WEB_CONCURRENCY="2",
            BENCH_SECONDS_A_WORD="1",
        )
        server = stack.enter_context(running(OURS, variables))
        server.wait()
        print(f"{STREAMS} streams at once for {asked.minutes:g} minutes, ten words each, one a second", flush=True)
        wrong = asyncio.run(endure(server, asked.minutes))
    sys.exit("; ".join(wrong) or None)


if __name__ == "__main__":
    main()
