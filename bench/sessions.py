"""``make bench``, first part: the sessions endpoint under load, compared with other implementations.

Everything runs on this machine: a fake of OpenAI over TLS, the service as the Procfile starts it, and the callers. Quote
ratios: the fake and the callers share the processors with the measured server.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from bench.server import OURS, UVICORN, running
from tests.support.load import Outcome, callers
from tests.support.service import PROJECT, environment, free_port

DESIGNS = {
    "this service": OURS,
    "FastAPI, a client per call": [*UVICORN, "bench.peers:per_call"],
    "FastAPI, OpenAI's SDK pooled": [*UVICORN, "bench.peers:pooled"],
}


@contextmanager
def fake_sessions_api(folder: Path, seconds: float) -> Iterator[dict[str, str]]:
    """Run the fake API with a response time of ``seconds``, and yield the environment for a server that uses it."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "bench.fake_sessions_api",
        str(port),
        str(seconds),
        f"{folder}/cert.pem",
        f"{folder}/key.pem",
    ]
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        yield environment(
            OPENAI_API_KEY="sk-bench",
            CHATKIT_WORKFLOW_ID="wf_bench",
            CHATKIT_API_BASE=f"https://localhost:{port}",
            SSL_CERT_FILE=f"{folder}/ca.pem",
            WEB_CONCURRENCY="2",
        )
    finally:
        process.terminate()
        process.wait(10)


def certificates(folder: Path) -> None:
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(f"{folder}/ca.pem")
    server.private_key_pem.write_to_path(f"{folder}/key.pem")
    for pem in server.cert_chain_pems:
        pem.write_to_path(f"{folder}/cert.pem", append=True)


def boot(folder: Path) -> None:
    print("\nBoot to the first session, hosted (5 starts, median)")
    walls, cpus, sizes = [], [], []
    with fake_sessions_api(folder, 0) as variables:
        for _ in range(5):
            with running(OURS, variables) as server:
                walls.append(server.wait("/api/chatkit/sessions"))
                cpus.append(server.cpu())
                sizes.append(server.memory())
    median = statistics.median
    print(f"  {median(walls):.2f} s, {median(cpus):.2f} s of CPU, {median(sizes):.0f} MB with two workers")


def compare(folder: Path, title: str, response_seconds: float, number: int, seconds: float) -> None:
    print(f"\n{title}")
    ours = None
    with fake_sessions_api(folder, response_seconds) as variables:
        for name, command in DESIGNS.items():
            with running(command, variables) as server:
                server.wait()
                asyncio.run(callers(server.port, number, seconds=2))  # warm up
                before = server.cpu()
                outcome = asyncio.run(callers(server.port, number, seconds=seconds))
                cpu, memory = server.cpu() - before, server.memory()
            good = outcome.statuses.get(200, 0)
            rate = good / outcome.seconds
            ours = ours or rate
            print(
                f"  {name:29} {rate:6.0f}/s ({rate / ours:4.2f}x)  {cpu / max(good, 1) * 1000:5.2f} ms CPU each  "
                f"p50 {outcome.percentile(0.5) * 1000:4.0f} ms  p99 {outcome.percentile(0.99) * 1000:4.0f} ms  "
                f"{memory:3.0f} MB  {failures(outcome)}"
            )


def failures(outcome: Outcome) -> str:
    failed = {status: count for status, count in outcome.statuses.items() if status != 200}
    return f"not 200: {failed or 'none'}, lost: {outcome.lost}"


def burst(folder: Path) -> None:
    print("\n200 concurrent callers, one call each, on a service that was just started; OpenAI takes 300 ms")
    with fake_sessions_api(folder, 0.3) as variables, running(OURS, variables) as server:
        server.wait()
        outcome = asyncio.run(callers(server.port, 200, calls=1))
    print(f"  {outcome.statuses.get(200, 0)} sessions, the last after {max(outcome.latencies):.2f} s; {failures(outcome)}")


def slow_drip(folder: Path) -> None:
    print("\nOpenAI sends a byte per second: 100 callers, with concurrent health checks")
    with fake_sessions_api(folder, 0) as variables:
        dripping = {**variables, "CHATKIT_API_BASE": f"{variables['CHATKIT_API_BASE']}/drip"}
        with running(OURS, dripping) as server:
            server.wait()

            async def load() -> tuple[Outcome, Outcome]:
                slow = callers(server.port, 100, calls=1)
                health = callers(server.port, 1, seconds=9, method="GET", path="/healthz")
                return await asyncio.gather(slow, health)

            slow, health = asyncio.run(load())
    print(f"  slow calls: {slow.statuses}, the longest {max(slow.latencies):.2f} s; lost: {slow.lost}")
    print(f"  health checks: {len(health.latencies)}, the longest {max(health.latencies) * 1000:.0f} ms; {failures(health)}")


def stop_under_load(folder: Path) -> None:
    print("\nSIGTERM under the load of 200 callers; OpenAI takes 300 ms")
    with fake_sessions_api(folder, 0.3) as variables, running(OURS, variables) as server:
        server.wait()

        async def load_and_stop() -> Outcome:
            load = asyncio.create_task(callers(server.port, 200, seconds=6))
            await asyncio.sleep(3)
            server.process.send_signal(signal.SIGTERM)
            return await load

        outcome = asyncio.run(load_and_stop())
        server.process.wait(30)
    print(f"  responses: {outcome.statuses}, accepted and lost: {outcome.lost}, exit code {server.process.returncode}")


def main() -> None:
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}; two workers each, TLS to the fake of OpenAI")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates(folder)
        boot(folder)
        compare(folder, "OpenAI responds at once, 32 callers for 8 s", 0, 32, 8)
        compare(folder, "OpenAI takes 300 ms, 200 callers for 8 s (667/s are possible)", 0.3, 200, 8)
        burst(folder)
        slow_drip(folder)
        stop_under_load(folder)


if __name__ == "__main__":
    main()
