"""A series of attacks, and their effect on other users: ``python -m bench.mixed [--minutes 60] [--nginx]``.

During each attack, a health check runs every 100 ms on a new connection, as platforms do it, and an unrelated user makes a turn
per second. The run fails, with the reasons, if a health check takes more than a second, a turn takes more than twice its
baseline, a worker is missing or was replaced unexpectedly, a status is unexpected, or a worker uses too much memory.

When an attack blocks a worker's event loop, new connections are accepted by the other worker, because the workers share a
socket, and are held to the same limits. Requests that the blocked worker had already accepted have to wait, so they are not
judged; nor are health checks on keep-alive connections, which are only reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import psutil
import psycopg

from bench import attacks
from bench.attacks import APPLICATION_NAME, Attack, AttackResult, Target
from bench.server import PROCFILE, Server, postgres, running
from chatkit.settings import VARIABLES
from tests.support.load import Visitor, call, callers, create_visitors, read_stream
from tests.support.service import PROJECT, environment, free_port

CHECK_SECONDS = 0.1
MAX_CHECK_SECONDS = 1.0
MAX_TURN = 2.0  # times the baseline
MAX_LOCKED_SECONDS = 6.5  # added to a turn while its table is locked: a 503 after five seconds, and a second for a draft
MAX_WORKER_MB = 500
BLOCK_START_SECONDS = 0.5  # from the request of a block until it has started
SESSION_SECONDS = 400
POOL = 4
WORKERS = 2
TURN_SECONDS = 20


@dataclass(frozen=True)
class Phase:
    name: str
    attack: Attack = attacks.no_attack
    statuses: frozenset[int] = frozenset({200})
    """The statuses that attackers may receive."""
    log: str = "$^"
    """A pattern of the errors that may be logged."""
    blocks: bool = False
    """Whether a worker's event loop is blocked."""
    replaces: bool = False
    """Whether workers are expected to be replaced."""
    locks: bool = False
    """Whether a table that all turns need is locked."""


BLOCKED = "the event loop has been blocked"
KILLED = f"{BLOCKED}|WORKER TIMEOUT|Worker.*(SIGKILL|SIGABRT|code 1)"
REJECTED = frozenset({429, 503})
PHASES = (
    Phase("no attack"),
    Phase("an agent that blocks for 10 s", attacks.Blocking(10), frozenset({200}), BLOCKED, blocks=True),
    Phase("an agent that blocks for 45 s", attacks.Blocking(45), frozenset({0, 200, 502}), KILLED, blocks=True, replaces=True),
    Phase(
        "a table lock",
        attacks.table_lock,
        frozenset({200, 503}),
        "database_unavailable|not_ready|QueryCanceled|LockNotAvailable",
        locks=True,
    ),
    Phase("a database pool of 4", attacks.small_pool),
    Phase("a hanging OpenAI", attacks.hanging_openai, frozenset({200}) | REJECTED, "openai_unavailable|model's service"),
    Phase("a flood of feedback", attacks.feedback_flood, frozenset({200, 400, 404, 429})),
    Phase("bodies of 8 MiB", attacks.large_bodies, frozenset({413}) | REJECTED),
    Phase("slow clients", attacks.slow_clients, frozenset({0, 400, 408})),
    Phase("two greedy addresses", attacks.greedy_addresses, frozenset({200, 429}), "model's service"),
    Phase("no attack again"),
)


@dataclass
class Sample:
    started: float
    seconds: float
    status: int
    complete: bool = True


@dataclass
class Measurements:
    """The measurements of one phase."""

    checks: list[Sample] = field(default_factory=list)
    hosted_checks: list[Sample] = field(default_factory=list)
    ready: list[Sample] = field(default_factory=list)
    turns: list[Sample] = field(default_factory=list)
    workers: list[dict[int, float]] = field(default_factory=list)
    keep_alive: float = 0
    """The longest check on keep-alive connections, in seconds."""
    connections: int = 0
    """The largest number of database connections."""
    late: float = 0
    """The largest delay of the observer itself, in seconds."""


class UnrelatedUser:
    """A user who is not attacking; the session is renewed before it expires."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._visitor: Visitor | None = None
        self._until = 0.0

    async def turn(self) -> Sample:
        if self._visitor is None or time.monotonic() > self._until:
            [self._visitor] = await create_visitors(self._port, 1, network=3)
            self._until = time.monotonic() + SESSION_SECONDS
        reply = await read_stream(self._port, self._visitor)
        ended = reply.complete_stream or b'data: {"type":"error"' in reply.received
        return Sample(reply.started, reply.seconds, reply.status, ended)


async def check(port: int, path: str, samples: list[Sample]) -> None:
    reply = await call(port, "GET", path)
    samples.append(Sample(reply.started, reply.seconds, reply.status))


async def observe(server: Server, target: Target, user: UnrelatedUser, attack: asyncio.Future[AttackResult]) -> Measurements:
    """Measure the services until ``attack`` is done."""
    measured = Measurements()
    database = await psycopg.AsyncConnection.connect(target.database, application_name=APPLICATION_NAME, autocommit=True)
    keep_alive = asyncio.ensure_future(watch_keep_alive(target.port, attack))
    pending: set[asyncio.Task[None]] = set()

    def start(coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        pending.add(task)
        task.add_done_callback(pending.discard)

    async def turns() -> None:
        while not attack.done():
            started = time.monotonic()
            measured.turns.append(await user.turn())
            await asyncio.sleep(max(0, started + 1 - time.monotonic()))

    start(turns())
    tick = 0
    connections = 0
    next_tick = time.monotonic()
    while not attack.done():
        measured.late = max(measured.late, time.monotonic() - next_tick)
        start(check(target.port, "/healthz", measured.checks))
        if tick % 10 == 0:
            start(check(target.hosted_port, "/healthz", measured.hosted_checks))
            start(check(target.port, "/readyz", measured.ready))
            measured.workers.append(server.workers())
            earlier, connections = connections, await count_connections(database)
            # In two counts, because a connection that is being closed is still listed for a moment.
            measured.connections = max(measured.connections, min(earlier, connections))
        tick += 1
        next_tick += CHECK_SECONDS
        await asyncio.sleep(max(0, next_tick - time.monotonic()))
    await asyncio.gather(*pending)
    measured.keep_alive = await keep_alive
    await database.close()
    return measured


async def watch_keep_alive(port: int, attack: asyncio.Future[AttackResult]) -> float:
    """Return the longest health check on four keep-alive connections."""
    longest = 0.0
    while not attack.done():
        outcome = await callers(port, 4, seconds=5, method="GET", path="/healthz", pause=CHECK_SECONDS, addresses=4)
        longest = max(longest, *outcome.latencies)
    return longest


async def count_connections(database: psycopg.AsyncConnection) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> %s"
    [count] = await (await database.execute(query, [APPLICATION_NAME])).fetchone() or [0]
    return int(count)


async def count_accepting_workers(server: Server) -> int:
    """Count the workers that accept connections."""
    accepting: set[int] = set()
    writers = []
    for _ in range(300):
        writers.append((await asyncio.open_connection("127.0.0.1", server.port))[1])
        await asyncio.sleep(0.02)
        own = {writer.get_extra_info("sockname")[1] for writer in writers}
        for pid in server.workers().keys() - accepting:
            if any(found.raddr and found.raddr.port in own for found in psutil.Process(pid).net_connections("tcp")):
                accepting.add(pid)
        if len(accepting) == WORKERS:
            break
    for writer in writers:
        writer.close()
    return len(accepting)


@dataclass
class PhaseReport:
    """The report on a phase."""

    phase: Phase
    measured: Measurements
    result: AttackResult
    log: list[str]
    accepting: int
    baseline: float

    def judged(self, samples: list[Sample]) -> list[Sample]:
        """Exclude samples that a worker had accepted before it was blocked."""
        if not self.phase.blocks:
            return samples
        return [
            sample
            for sample in samples
            if sample.seconds < MAX_CHECK_SECONDS
            or not any(
                sample.started < blocked_at + BLOCK_START_SECONDS and sample.started + sample.seconds > blocked_at
                for blocked_at, _ in self.result.blocked
            )
        ]

    def failures(self) -> Iterator[str]:
        ready = {200, 503} if self.phase.locks else {200}
        for name, samples, statuses in (
            ("health check", self.measured.checks, {200}),
            ("health check of the hosted service", self.measured.hosted_checks, {200}),
            ("readiness check", self.measured.ready, ready),
        ):
            yield from _too_slow(name, self.judged(samples), MAX_CHECK_SECONDS)
            yield from _unexpected(name, Counter(sample.status for sample in self.judged(samples)), statuses)
        longest = MAX_LOCKED_SECONDS + self.baseline if self.phase.locks else MAX_TURN * self.baseline
        yield from _too_slow("turn", self.judged(self.measured.turns), longest)
        yield from _unexpected("turn", Counter(sample.status for sample in self.judged(self.measured.turns)), ready)
        broken = [sample for sample in self.judged(self.measured.turns) if sample.status == 200 and not sample.complete]
        if broken:
            yield f"{len(broken)} turns with neither their last event nor an error"
        yield from _unexpected("attack", self.result.statuses, self.phase.statuses)
        if self.measured.workers[0].keys() != self.measured.workers[-1].keys() and not self.phase.replaces:
            yield "a worker was replaced"
        if self.accepting != WORKERS:
            yield f"{self.accepting} of {WORKERS} workers accept connections at the end"
        if self.largest > MAX_WORKER_MB:
            yield f"a worker had {self.largest:.0f} MB"
        if "CHATKIT_DATABASE_CONNECTIONS" in VARIABLES and self.measured.connections > POOL * WORKERS:
            yield f"{self.measured.connections} connections to the database"
        if self.log:
            yield f"{len(self.log)} unexpected lines in the log"

    @property
    def largest(self) -> float:
        return max(size for found in self.measured.workers for size in found.values())

    def show(self, seconds: float) -> None:
        checks, turns, judged = self.measured.checks, self.measured.turns, self.judged(self.measured.turns)
        waited = len(checks) - len(self.judged(checks))
        excused = (
            f", {len(turns) - len(judged)} not judged because their worker was blocked" if len(judged) < len(turns) else ""
        )
        times = sorted(sample.seconds for sample in judged)
        pids = {pid for found in self.measured.workers for pid in found}
        ends = "/".join(f"{size:.0f}" for size in self.measured.workers[-1].values())
        print(
            f"\n{self.phase.name} ({seconds:.0f} s)\n"
            f"  health check   {_summary(self.judged(checks))}  ({waited} not judged); "
            f"keep-alive connections worst {self.measured.keep_alive:.3f} s\n"
            f"  of the hosted  {_summary(self.judged(self.measured.hosted_checks))}\n"
            f"  readiness      {_summary(self.judged(self.measured.ready))}\n"
            f"  user's turns   p50 {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s "
            f"({times[-1] / self.baseline:.2f}x, {times[-1] - self.baseline:+.2f} s)  "
            f"{_statuses(Counter(sample.status for sample in turns))} of {len(turns)}{excused}\n"
            f"  attackers      {_statuses(self.result.statuses)}\n"
            f"  workers        {sorted(pids)}, {ends} MB, at most {self.largest:.0f} MB\n"
            f"  connections    {self.measured.connections} to the database; observer late by {self.measured.late:.2f} s"
        )
        for line in self.log[:5]:
            print(f"  unexpected     {line[:2000]}")
        for reason in self.failures():
            print(f"  FAILED         {reason}")
        sys.stdout.flush()


def _too_slow(name: str, samples: list[Sample], most: float) -> Iterator[str]:
    slow = [sample.seconds for sample in samples if sample.seconds > most]
    if slow:
        yield f"{len(slow)} of {len(samples)} took more than {most:.2f} s: {name}, {max(slow):.2f} s at worst"


def _unexpected(name: str, found: Counter[int], statuses: set[int] | frozenset[int]) -> Iterator[str]:
    failures = {status: count for status, count in found.items() if status not in statuses}
    if failures:
        yield f"{name}: statuses {failures}"


def _summary(samples: list[Sample]) -> str:
    times = sorted(sample.seconds for sample in samples)
    p99, worst = times[int(0.99 * (len(times) - 1))], times[-1]
    return f"p99 {p99:.3f} s, worst {worst:.3f} s  {_statuses(Counter(sample.status for sample in samples))}"


def _statuses(found: Counter[int]) -> str:
    return ", ".join(f"{status}: {count}" for status, count in sorted(found.items())) or "none"


class Log:
    """The log of a service since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def unexpected(self, expected: str) -> list[str]:
        """Return errors that do not match ``expected``, and lines that are not JSON."""
        with self.path.open() as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return [line for line in lines if _is_error(line) and not re.search(expected, line)]


def _is_error(line: str) -> bool:
    try:
        return json.loads(line)["level"] in ("ERROR", "CRITICAL") or "Traceback" in line
    except ValueError:
        return True


@contextmanager
def serving_process(command: list[str], port: int) -> Iterator[None]:
    """Run a process, and wait until it accepts connections on ``port``."""
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


NGINX = """
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 9m;
    proxy_http_version 1.1;
    proxy_read_timeout 130s;
    proxy_set_header Host $host;
    proxy_set_header Connection "";
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Forwarded-For;
    proxy_set_header X-Forwarded-For $remote_addr;
{servers}
}}
"""
NGINX_SERVER = """
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{ proxy_pass http://127.0.0.1:{backend}; }}
        location /api/chatkit {{ proxy_pass http://127.0.0.1:{backend}; proxy_buffering off; }}
    }}
"""


@contextmanager
def nginx(folder: Path, backends: list[int]) -> Iterator[list[int]]:
    """Run nginx in front of each of these ports, and yield its own ports."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program:
        sys.exit("nginx is not installed (apt-get install nginx)")
    ports = [free_port() for _ in backends]
    servers = "".join(NGINX_SERVER.format(port=port, backend=backend) for port, backend in zip(ports, backends, strict=True))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers))
    with serving_process([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], ports[0]):
        yield ports


async def run_phases(phases: list[Phase], server: Server, target: Target, logs: list[Log], minutes: float) -> list[str]:
    failures = []
    user = UnrelatedUser(target.port)
    baseline = 0.0
    # At a lower priority, because attackers do not run on the processors of the service.
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        await asyncio.wrap_future(pool.submit(attacks.run, attacks.no_attack, target, 1))
        for _ in range(3):
            await user.turn()  # warm up
        for earlier, phase in zip((phases[0], *phases), phases, strict=False):
            started = time.monotonic()
            attack = asyncio.wrap_future(pool.submit(attacks.run, phase.attack, target, minutes * 60 / len(phases)))
            measured = await observe(server, target, user, attack)
            baseline = baseline or sorted(sample.seconds for sample in measured.turns)[len(measured.turns) // 2]
            accepting = await count_accepting_workers(server)
            unexpected = [line for log in logs for line in log.unexpected(f"{earlier.log}|{phase.log}")]
            report = PhaseReport(phase, measured, attack.result(), unexpected, accepting, baseline)
            report.show(time.monotonic() - started)
            failures += [f"{phase.name}: {reason}" for reason in report.failures()]
    return failures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--nginx", action="store_true", help="put nginx in front")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the first phase and those with TEXT in their name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the services are stopped
    phases = [PHASES[0], *(phase for phase in PHASES[1:] if arguments.only in phase.name)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(postgres())
        openai_port = free_port()
        stack.enter_context(
            serving_process([sys.executable, "-W", "ignore", "-m", "bench.fake_openai", str(openai_port)], openai_port)
        )
        common = {
            "OPENAI_API_KEY": "sk-bench",
            "CHATKIT_API_BASE": f"http://127.0.0.1:{openai_port}",
            "WEB_CONCURRENCY": str(WORKERS),
            "RATE_LIMIT": "600,600",
        }
        selfhosted = environment(
            **common,
            CHATKIT_BACKEND="selfhosted",
            CHATKIT_AGENT="bench.workflow:run_workflow",
            CHATKIT_MAX_REQUESTS_PER_MINUTE="120",
            CHATKIT_TURN_SECONDS=str(TURN_SECONDS),
            DATABASE_URL=database,
        )
        selfhosted["CHATKIT_DATABASE_CONNECTIONS"] = str(POOL)
        hosted = environment(**common, CHATKIT_BACKEND="hosted", CHATKIT_WORKFLOW_ID="wf_bench")
        logs = [Log(folder / "selfhosted.log"), Log(folder / "hosted.log")]
        server = stack.enter_context(running([*PROCFILE], selfhosted, logs[0].path))
        other = stack.enter_context(running([*PROCFILE], hosted, logs[1].path))
        server.wait()
        other.wait()
        ports = [server.port, other.port]
        if arguments.nginx:
            ports = stack.enter_context(nginx(folder, ports))
        way = "through nginx" if arguments.nginx else "directly"
        print(f"{len(phases)} phases in {arguments.minutes:g} minutes, {way}, {WORKERS} workers, PostgreSQL", flush=True)
        failures = asyncio.run(run_phases(phases, server, Target(ports[0], ports[1], database), logs, arguments.minutes))
    if failures:
        sys.exit("\nFailed:\n  " + "\n  ".join(failures))
    print("\nAll phases passed.")


if __name__ == "__main__":
    main()
