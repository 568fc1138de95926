"""The cost of saving: streams with drafts and active runs, beside streams without, and beside OpenAI's starter design.

``python -m bench.saving`` measures them in turn, several times, and prints the ratios of the medians.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile

from bench.server import Server, postgres, running
from bench.streams import OURS, PEER, STREAMS_PER_USER, measure
from tests.support.load import Visitor, create_visitors
from tests.support.service import environment

STREAMS = 100
ROUNDS = 3
SECONDS = 12
SECONDS_PER_WORD = 0.4  # a stream of ten words is saved four times
UNSAVED = [*OURS[:-1], "bench.unsaved_app:app"]


def visitors(server: Server, command: list[str]) -> list[Visitor]:
    if command is PEER:
        return [Visitor()] * STREAMS  # it has no users
    return STREAMS_PER_USER * asyncio.run(create_visitors(server.port, STREAMS // STREAMS_PER_USER))


def compare(database: str) -> None:
    designs = {"with saving": OURS, "without": UNSAVED, "starter design": PEER}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in designs}
    for _ in range(ROUNDS):
        for name, command in designs.items():
            variables = environment(
                CHATKIT_BACKEND="selfhosted",
                DATABASE_URL=database,
                WEB_CONCURRENCY="2",
                BENCH_SECONDS_PER_WORD=str(SECONDS_PER_WORD),
            )
            with running(command, variables) as server:
                server.wait()
                print(f"  {name}", flush=True)
                results[name].append(measure(server, visitors(server, command), SECONDS))
    medians = {name: [statistics.median(values) for values in zip(*rounds, strict=True)] for name, rounds in results.items()}
    cpu, first = medians.pop("with saving")
    for name, (other_cpu, other_first) in medians.items():
        print(f"  with saving / {name}: CPU {cpu / other_cpu:.2f}, first event {first / other_first:.2f}")


def main() -> None:
    print(f"{STREAMS} concurrent streams of ten words, one per {SECONDS_PER_WORD * 1000:.0f} ms")
    with tempfile.TemporaryDirectory() as folder, postgres() as server:
        print("SQLite")
        compare(f"sqlite:///{folder}/chatkit.db")
        print("PostgreSQL")
        compare(server)


if __name__ == "__main__":
    main()
