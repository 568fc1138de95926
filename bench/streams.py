"""``make bench``, third part: streams, idle connections and sessions, compared with OpenAI's starter design.

The callers are many users who claim many addresses in ``X-Forwarded-For``. Quote ratios: the callers share the processors with
the measured server.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from bench.server import PROCFILE, UVICORN, Server, postgres, running
from bench.sessions import certificates, compare, failures
from tests.support.load import Outcome, Visitor, callers, create_visitors, idle_connections, readers
from tests.support.service import environment

OURS = [*PROCFILE[:-1], "bench.stream_app:app"]
PEER = [*UVICORN, "bench.stream_peer:app"]
STREAMS_PER_USER = 5
IDLE = 1_100
IDLE_SECONDS = 23  # a little more than the service's timeout for a request head


def measure(server: Server, visitors: list[Visitor], seconds: float) -> tuple[float, float]:
    """Return the CPU time of a stream in milliseconds, and the median seconds until its first event."""
    asyncio.run(readers(server.port, visitors[:100], 1))  # warm up
    before = server.cpu()
    seen = asyncio.run(readers(server.port, visitors, seconds))
    cpu = (server.cpu() - before) / max(seen.complete, 1) * 1000
    print(
        f"    {seen.complete:5} streams, {seen.broken} broken  {cpu:5.2f} ms CPU each  "
        f"first event p50 {seen.percentile(0.5):5.3f} s, p99 {seen.percentile(0.99):5.3f} s  "
        f"longest gap {seen.longest_gap:5.3f} s  {server.memory():3.0f} MB",
        flush=True,
    )
    return cpu, seen.percentile(0.5)


def idle(server: Server) -> None:
    async def load() -> tuple[int, Outcome]:
        checks = callers(server.port, 1, seconds=IDLE_SECONDS, method="GET", path="/healthz", pause=0.1, keep_alive=False)
        return await asyncio.gather(idle_connections(server.port, IDLE, IDLE_SECONDS), checks)

    still_open, health = asyncio.run(load())
    print(
        f"    worst health check {max(health.latencies):5.3f} s of {len(health.latencies)}; {failures(health)}; "
        f"open after {IDLE_SECONDS} s: {still_open}",
        flush=True,
    )


def sessions(server: Server) -> None:
    asyncio.run(callers(server.port, 32, seconds=1))
    before = server.cpu()
    outcome = asyncio.run(callers(server.port, 32, seconds=5))
    good = outcome.statuses.get(200, 0)
    cpu = (server.cpu() - before) / max(good, 1) * 1000
    print(
        f"    {good / outcome.seconds:6.0f}/s  {cpu:5.2f} ms CPU each  "
        f"p50 {outcome.percentile(0.5):5.3f} s  {failures(outcome)}"
    )


def table(name: str, command: list[str], database: str) -> None:
    print(f"\n{name}", flush=True)
    for streams, pace, seconds in ((100, 0.1, 10), (100, 0.02, 10), (1000, 1, 0)):
        variables = environment(
            CHATKIT_BACKEND="selfhosted",
            DATABASE_URL=database,
            WEB_CONCURRENCY="2",
            LOG_LEVEL="INFO",
            BENCH_SECONDS_PER_WORD=str(pace),
        )
        with running(command, variables) as server:
            server.wait()
            visitors = [Visitor()] * streams  # the starter design has no users
            if command is OURS:
                visitors = STREAMS_PER_USER * asyncio.run(create_visitors(server.port, streams // STREAMS_PER_USER))
            print(f"  {streams} concurrent streams of ten words, one per {pace * 1000:.0f} ms", flush=True)
            measure(server, visitors, seconds)
            if streams == 1000:
                print(f"  {IDLE} connections, silent or with a header byte per second", flush=True)
                idle(server)
                if command is OURS:
                    print("  sessions, 32 callers", flush=True)
                    sessions(server)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, postgres() as server:
        table("This service, SQLite", OURS, f"sqlite:///{folder}/chatkit.db")
        table("This service, PostgreSQL", OURS, server)
        table("FastAPI, OpenAI's server package, an in-memory store", PEER, "")
        certificates(Path(folder))
        compare(Path(folder), "Sessions of the hosted backend, OpenAI responds at once, 32 callers", 0, 32, 5)


if __name__ == "__main__":
    main()
