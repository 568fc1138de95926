"""A soak test: 1,000 concurrent streams, none of which may break, while the workers' memory stays constant.

``python -m bench.endurance [--minutes 10] [--postgresql]``
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack

from bench.server import Server, postgres, running
from bench.streams import OURS, STREAMS_PER_USER
from tests.support.load import Streams, Visitor, create_visitors, read_stream
from tests.support.service import environment

STREAMS = 1_000
REPORT_SECONDS = 30
SESSION_SECONDS = 400  # of the 600 that a session lives
MAX_GROWTH = 1.1  # of the workers' memory from the first half to the second, without the first 30 s


async def run(server: Server, minutes: float) -> list[str]:
    """Keep ``server`` under load and return the failures."""
    started = time.monotonic()
    until = started + minutes * 60
    streams, total = Streams(), Streams()
    visitors: list[Visitor] = []

    async def renew_sessions() -> None:
        while True:
            visitors[:] = await create_visitors(server.port, STREAMS // STREAMS_PER_USER)
            await asyncio.sleep(SESSION_SECONDS)

    async def reader(index: int) -> None:
        await asyncio.sleep(index / STREAMS * 10)  # staggered: a tenth of them starts each second
        while time.monotonic() < until:
            reply = await read_stream(server.port, visitors[index // STREAMS_PER_USER])
            streams.count(reply)

    renewing = asyncio.create_task(renew_sessions())
    while not visitors:
        await asyncio.sleep(0.1)
    reading = asyncio.gather(*(reader(index) for index in range(STREAMS)))
    sizes = []
    while not reading.done():
        await asyncio.wait([reading], timeout=REPORT_SECONDS)
        sizes.append(server.workers())
        total.add(streams)
        shown = ", ".join(f"{size:.0f}" for size in sizes[-1].values())
        print(
            f"  after {time.monotonic() - started:4.0f} s: {streams.complete} more streams, {streams.broken} broken, "
            f"first event p50 {streams.percentile(0.5):5.3f} s, p99 {streams.percentile(0.99):5.3f} s, workers {shown} MB",
            flush=True,
        )
        streams = Streams()
    renewing.cancel()
    failures = []
    if total.broken:
        failures.append(f"{total.broken} of {total.broken + total.complete} streams broke; statuses: {dict(total.statuses)}")
    if any(found.keys() != sizes[0].keys() for found in sizes):
        failures.append("a worker was replaced")
    sums = [sum(found.values()) for found in sizes[1:]]
    half = len(sums) // 2
    if half and max(sums[half:]) > MAX_GROWTH * max(sums[:half]):
        failures.append(f"memory grew from {max(sums[:half]):.0f} to {max(sums[half:]):.0f} MB")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        variables = environment(
            CHATKIT_BACKEND="selfhosted",
            DATABASE_URL=stack.enter_context(postgres()) if arguments.postgresql else f"sqlite:///{folder}/chatkit.db",
            WEB_CONCURRENCY="2",
            BENCH_SECONDS_PER_WORD="1",
        )
        server = stack.enter_context(running(OURS, variables))
        server.wait()
        print(f"{STREAMS} concurrent streams for {arguments.minutes:g} minutes, ten words each, one per second", flush=True)
        failures = asyncio.run(run(server, arguments.minutes))
    sys.exit("; ".join(failures) or None)


if __name__ == "__main__":
    main()
