"""The cost of saving: streams with drafts and active runs, beside streams without, and beside OpenAI's starter design.

``python -m bench.saving`` measures them in turn, several times, and prints the medians of the ratios.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from contextlib import ExitStack

from bench.server import Server, postgres, running
from bench.streams import OURS, PEER, STREAMS_PER_USER, measure
from tests.support.load import Visitor, create_visitors
from tests.support.service import environment

STREAMS = 100
ROUNDS = 7
SECONDS = 5
SECONDS_PER_WORD = 0.4  # a stream of ten words is saved four times
UNSAVED = [*OURS[:-1], "bench.unsaved_app:app"]


def visitors(server: Server, command: list[str]) -> list[Visitor]:
    if command is PEER:
        return [Visitor()] * STREAMS  # it has no users
    return STREAMS_PER_USER * asyncio.run(create_visitors(server.port, STREAMS // STREAMS_PER_USER))


def compare(database: str) -> None:
    """Measure the designs in short rounds, one after another, because the speed of a shared machine changes by the minute."""
    designs = {"with saving": OURS, "without": UNSAVED, "starter design": PEER}
    variables = environment(
        CHATKIT_BACKEND="selfhosted", DATABASE_URL=database, WEB_CONCURRENCY="2", BENCH_SECONDS_PER_WORD=str(SECONDS_PER_WORD)
    )
    rounds: list[dict[str, tuple[float, float]]] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(running(command, variables)) for name, command in designs.items()}
        readers = {}
        for name, server in servers.items():
            server.wait()
            readers[name] = visitors(server, designs[name])
        for number in range(ROUNDS):
            print(f"  round {number + 1}: {', '.join(designs)}", flush=True)
            rounds.append({name: measure(server, readers[name], SECONDS) for name, server in servers.items()})
    for other in ("without", "starter design"):
        ratios = [[mine / its for mine, its in zip(each["with saving"], each[other], strict=True)] for each in rounds]
        cpu, first = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(f"  with saving / {other}, median of {ROUNDS} rounds: CPU {cpu:.2f}, first event {first:.2f}")


def main() -> None:
    print(f"{STREAMS} concurrent streams of ten words, one per {SECONDS_PER_WORD * 1000:.0f} ms")
    with tempfile.TemporaryDirectory() as folder, postgres() as server:
        print("SQLite")
        compare(f"sqlite:///{folder}/chatkit.db")
        print("PostgreSQL")
        compare(server)


if __name__ == "__main__":
    main()
