"""The cost of saving: streams with drafts and active runs, beside streams without, and beside OpenAI's starter design.

``python -m bench.saving`` measures them in turn, several times, and prints the medians of the ratios, after about 20 minutes:
two rounds differ by a tenth and more, so a few of them say little.
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
ROUNDS = 15
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
        for server in servers.values():
            server.wait()
        for number in range(ROUNDS):
            order = list(designs) if number % 2 else list(designs)[::-1]
            print(f"  round {number + 1}: {', '.join(order)}", flush=True)
            rounds.append({name: measure(servers[name], visitors(servers[name], designs[name]), SECONDS) for name in order})
    for other in ("without", "starter design"):
        print(f"  with saving / {other}, median of {ROUNDS} rounds and their middle half:")
        for number, what in enumerate(("CPU", "first event")):
            ratios = [each["with saving"][number] / each[other][number] for each in rounds]
            low, median, high = statistics.quantiles(ratios, n=4)
            print(f"    {what} {median:.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    print(f"{STREAMS} concurrent streams of ten words, one per {SECONDS_PER_WORD * 1000:.0f} ms")
    with tempfile.TemporaryDirectory() as folder, postgres() as server:
        print("SQLite")
        compare(f"sqlite:///{folder}/chatkit.db")
        print("PostgreSQL")
        compare(server)


if __name__ == "__main__":
    main()
