"""Trouble in turns, and what others notice of it: ``python -m bench.mixed [--minutes 60] [--nginx]``.

Meanwhile a health check comes each 100 ms, each on a connection of its own, as platforms' do, and a user who has nothing to do
with it makes a turn a second. The run fails, and says why, if a health check takes more than a second, the user's turn more
than twice its usual time, a worker is not replaced, a response has a status that its trouble does not explain, or a worker
takes too much memory.

What is fair where a worker's event loop is blocked on purpose: the workers accept from one socket, so a new connection is taken
by one that is not blocked, and is held to the bounds like any other. What the blocked worker had accepted before has to wait:
connections that are kept (shown, and not judged in any phase), and the turns and checks that had begun.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
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
from bench.attacks import OUR_NAME, Attack, Done, Target
from bench.load import Visitor, call, callers, mint, read_stream
from bench.server import PROCFILE, Server, postgres, running
from chatkit.settings import VARIABLES
from tests.service import PROJECT, environment, free_port

CHECK_SECONDS = 0.1
MAX_CHECK_SECONDS = 1.0
MAX_TURN = 2.0  # times the usual
MAX_LOCKED_SECONDS = 6.0  # of a turn while its table is locked: five for the lock, and then a 503
MAX_WORKER_MB = 500
BEGUN_SECONDS = 0.5  # after an attack has asked for a block it has begun
SESSION_SECONDS = 400
POOL = 4
WORKERS = 2
TURN_SECONDS = 20


@dataclass(frozen=True)
class Phase:
    name: str
    attack: Attack = attacks.nothing
    statuses: frozenset[int] = frozenset({200})
    """That the attackers may see."""
    log: str = "$^"
    """Errors that the log may have."""
    blocks: bool = False
    replaces: bool = False
    """Whether workers are expected to be replaced."""
    locks: bool = False
    """Whether the table is locked that everybody needs."""


BLOCKED = "the event loop has been blocked"
KILLED = f"{BLOCKED}|WORKER TIMEOUT|Worker.*(SIGKILL|SIGABRT|code 1)"
REFUSED = frozenset({429, 503})
PHASES = (
    Phase("nothing"),
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
    Phase("a hanging OpenAI", attacks.hanging_openai, frozenset({200}) | REFUSED, "openai_unavailable|model's service"),
    Phase("a flood of feedback", attacks.feedback_flood, frozenset({200, 400, 404, 429})),
    Phase("bodies of 8 MiB", attacks.large_bodies, frozenset({413}) | REFUSED),
    Phase("slow clients", attacks.slow_clients, frozenset({0, 400, 408})),
    Phase("two greedy addresses", attacks.greedy_addresses, frozenset({200, 429}), "model's service"),
    Phase("nothing again"),
)


@dataclass
class Sample:
    began: float
    seconds: float
    status: int
    whole: bool = True


@dataclass
class Seen:
    """What the judges saw in one phase."""

    checks: list[Sample] = field(default_factory=list)
    hosted_checks: list[Sample] = field(default_factory=list)
    ready: list[Sample] = field(default_factory=list)
    turns: list[Sample] = field(default_factory=list)
    workers: list[dict[int, float]] = field(default_factory=list)
    kept: float = 0
    """The longest check on connections that are kept, in seconds."""
    connections: int = 0
    """Of the database, at most."""
    late: float = 0
    """Of the judge itself, at most."""


class User:
    """Somebody who makes a turn, again and again, on a session that is renewed in time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._visitor: Visitor | None = None
        self._until = 0.0

    async def turn(self) -> Sample:
        if self._visitor is None or time.monotonic() > self._until:
            [self._visitor] = await mint(self._port, 1, network=3)
            self._until = time.monotonic() + SESSION_SECONDS
        reply = await read_stream(self._port, self._visitor)
        ended = reply.whole_stream or b'data: {"type":"error"' in reply.received
        return Sample(reply.started, reply.seconds, reply.status, ended)


async def check(port: int, path: str, samples: list[Sample]) -> None:
    reply = await call(port, "GET", path)
    samples.append(Sample(reply.started, reply.seconds, reply.status))


async def judge(server: Server, target: Target, user: User, attack: asyncio.Future[Done]) -> Seen:
    """Look at the services until ``attack`` is over."""
    seen = Seen()
    database = await psycopg.AsyncConnection.connect(target.database, application_name=OUR_NAME, autocommit=True)
    kept = asyncio.ensure_future(watch_kept(target.port, attack))
    pending: set[asyncio.Task[None]] = set()

    def start(coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        pending.add(task)
        task.add_done_callback(pending.discard)

    async def turns() -> None:
        while not attack.done():
            started = time.monotonic()
            seen.turns.append(await user.turn())
            await asyncio.sleep(max(0, started + 1 - time.monotonic()))

    start(turns())
    tick = 0
    next_tick = time.monotonic()
    while not attack.done():
        seen.late = max(seen.late, time.monotonic() - next_tick)
        start(check(target.port, "/healthz", seen.checks))
        if tick % 10 == 0:
            start(check(target.hosted_port, "/healthz", seen.hosted_checks))
            start(check(target.port, "/readyz", seen.ready))
            seen.workers.append(server.workers())
            seen.connections = max(seen.connections, await count_connections(database))
        tick += 1
        next_tick += CHECK_SECONDS
        await asyncio.sleep(max(0, next_tick - time.monotonic()))
    await asyncio.gather(*pending)
    seen.kept = await kept
    await database.close()
    return seen


async def watch_kept(port: int, attack: asyncio.Future[Done]) -> float:
    """The longest health check of four kept connections."""
    longest = 0.0
    while not attack.done():
        outcome = await callers(port, 4, seconds=5, method="GET", path="/healthz", pause=CHECK_SECONDS, addresses=4)
        longest = max(longest, *outcome.latencies)
    return longest


async def count_connections(database: psycopg.AsyncConnection) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name <> %s"
    [count] = await (await database.execute(query, [OUR_NAME])).fetchone() or [0]
    return int(count)


async def workers_that_accept(server: Server) -> int:
    """How many of the workers take a connection; the faster one takes the next."""
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
class Verdict:
    """What is said of a phase, and what was wrong in it."""

    phase: Phase
    seen: Seen
    done: Done
    log: list[str]
    accepting: int
    usual: float

    def held(self, samples: list[Sample]) -> list[Sample]:
        """Those that are held to the bounds: not what a worker had accepted when it was blocked."""
        if not self.phase.blocks:
            return samples
        return [
            sample
            for sample in samples
            if sample.seconds < MAX_CHECK_SECONDS
            or not any(
                sample.began < began + BEGUN_SECONDS and sample.began + sample.seconds > began for began, _ in self.done.blocked
            )
        ]

    def wrong(self) -> Iterator[str]:
        ready = {200, 503} if self.phase.locks else {200}
        for name, samples, statuses in (
            ("health check", self.seen.checks, {200}),
            ("health check of the hosted service", self.seen.hosted_checks, {200}),
            ("readiness check", self.seen.ready, ready),
        ):
            yield from _too_long(name, self.held(samples), MAX_CHECK_SECONDS)
            yield from _unexpected(name, Counter(sample.status for sample in self.held(samples)), statuses)
        longest = MAX_LOCKED_SECONDS if self.phase.locks else MAX_TURN * self.usual
        yield from _too_long("turn", self.held(self.seen.turns), longest)
        yield from _unexpected("turn", Counter(sample.status for sample in self.held(self.seen.turns)), ready)
        broken = [sample for sample in self.held(self.seen.turns) if sample.status == 200 and not sample.whole]
        if broken:
            yield f"{len(broken)} turns without their last event, and without an error"
        yield from _unexpected("attack", self.done.statuses, self.phase.statuses)
        if self.seen.workers[0].keys() != self.seen.workers[-1].keys() and not self.phase.replaces:
            yield "a worker was replaced"
        if self.accepting != WORKERS:
            yield f"{self.accepting} of {WORKERS} workers accept connections at the end"
        if self.largest > MAX_WORKER_MB:
            yield f"a worker had {self.largest:.0f} MB"
        if "CHATKIT_DATABASE_CONNECTIONS" in VARIABLES and self.seen.connections > POOL * WORKERS:
            yield f"{self.seen.connections} connections to the database"
        if self.log:
            yield f"{len(self.log)} unexpected lines in the log"

    @property
    def largest(self) -> float:
        return max(size for found in self.seen.workers for size in found.values())

    def show(self, seconds: float) -> None:
        checks, turns, held = self.seen.checks, self.seen.turns, self.held(self.seen.turns)
        waited = len(checks) - len(self.held(checks))
        excused = f", {len(turns) - len(held)} not judged because their worker was blocked" if len(held) < len(turns) else ""
        times = sorted(sample.seconds for sample in held)
        pids = {pid for found in self.seen.workers for pid in found}
        ends = "/".join(f"{size:.0f}" for size in self.seen.workers[-1].values())
        print(
            f"\n{self.phase.name} ({seconds:.0f} s)\n"
            f"  health check   {_shown(self.held(checks))}  ({waited} not judged); "
            f"kept connections worst {self.seen.kept:.3f} s\n"
            f"  of the hosted  {_shown(self.held(self.seen.hosted_checks))}\n"
            f"  readiness      {_shown(self.held(self.seen.ready))}\n"
            f"  user's turns   p50 {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s ({times[-1] / self.usual:.2f}x)  "
            f"{_statuses(Counter(sample.status for sample in turns))} of {len(turns)}{excused}\n"
            f"  attackers      {_statuses(self.done.statuses)}\n"
            f"  workers        {sorted(pids)}, {ends} MB, at most {self.largest:.0f} MB\n"
            f"  connections    {self.seen.connections} to the database; the judge itself was late by {self.seen.late:.2f} s"
        )
        for line in self.log[:5]:
            print(f"  unexpected     {line[:2000]}")
        for reason in self.wrong():
            print(f"  WRONG          {reason}")
        sys.stdout.flush()


def _too_long(name: str, samples: list[Sample], most: float) -> Iterator[str]:
    slow = [sample.seconds for sample in samples if sample.seconds > most]
    if slow:
        yield f"{len(slow)} of {len(samples)} took more than {most:.2f} s: {name}, {max(slow):.2f} s at worst"


def _unexpected(name: str, found: Counter[int], statuses: set[int] | frozenset[int]) -> Iterator[str]:
    others = {status: count for status, count in found.items() if status not in statuses}
    if others:
        yield f"{name}: statuses {others}"


def _shown(samples: list[Sample]) -> str:
    times = sorted(sample.seconds for sample in samples)
    p99, worst = times[int(0.99 * (len(times) - 1))], times[-1]
    return f"p99 {p99:.3f} s, worst {worst:.3f} s  {_statuses(Counter(sample.status for sample in samples))}"


def _statuses(found: Counter[int]) -> str:
    return ", ".join(f"{status}: {count}" for status, count in sorted(found.items())) or "none"


class Log:
    """What a service has logged since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def unexpected(self, expected: str) -> list[str]:
        """Errors that are not ``expected``, and whatever is no line of ours."""
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
def child(command: list[str], port: int) -> Iterator[None]:
    """A process that serves on ``port``, once it does."""
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
        location / {{ proxy_pass http://127.0.0.1:{behind}; }}
        location /api/chatkit {{ proxy_pass http://127.0.0.1:{behind}; proxy_buffering off; }}
    }}
"""


@contextmanager
def nginx(folder: Path, behind: list[int]) -> Iterator[list[int]]:
    """A proxy in front of each of these ports; its own."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program:
        sys.exit("nginx is not installed (apt-get install nginx)")
    ports = [free_port() for _ in behind]
    servers = "".join(NGINX_SERVER.format(port=port, behind=other) for port, other in zip(ports, behind, strict=True))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers))
    with child([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], ports[0]):
        yield ports


async def take_turns(phases: list[Phase], server: Server, target: Target, logs: list[Log], minutes: float) -> list[str]:
    wrong = []
    user = User(target.port)
    usual = 0.0
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        await asyncio.wrap_future(pool.submit(attacks.run, attacks.nothing, target, 1))
        for _ in range(3):
            await user.turn()  # warm up
        for earlier, phase in zip((phases[0], *phases), phases, strict=False):
            started = time.monotonic()
            attack = asyncio.wrap_future(pool.submit(attacks.run, phase.attack, target, minutes * 60 / len(phases)))
            seen = await judge(server, target, user, attack)
            usual = usual or sorted(sample.seconds for sample in seen.turns)[len(seen.turns) // 2]
            accepting = await workers_that_accept(server)
            unexpected = [line for log in logs for line in log.unexpected(f"{earlier.log}|{phase.log}")]
            verdict = Verdict(phase, seen, attack.result(), unexpected, accepting, usual)
            verdict.show(time.monotonic() - started)
            wrong += [f"{phase.name}: {reason}" for reason in verdict.wrong()]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--nginx", action="store_true", help="put nginx in front")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the first phase, and those with TEXT in their name")
    asked = parser.parse_args()
    phases = [PHASES[0], *(phase for phase in PHASES[1:] if asked.only in phase.name)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(postgres())
        fake = free_port()
        stack.enter_context(child([sys.executable, "-W", "ignore", "-m", "bench.fake_openai", str(fake)], fake))
        common = {
            "OPENAI_API_KEY": "sk-bench",
            "CHATKIT_API_BASE": f"http://127.0.0.1:{fake}",
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
        if asked.nginx:
            ports = stack.enter_context(nginx(folder, ports))
        way = "through nginx" if asked.nginx else "directly"
        print(f"{len(phases)} phases in {asked.minutes:g} minutes, {way}, {WORKERS} workers, PostgreSQL", flush=True)
        wrong = asyncio.run(take_turns(phases, server, Target(ports[0], ports[1], database), logs, asked.minutes))
    if wrong:
        sys.exit("\nWrong:\n  " + "\n  ".join(wrong))
    print("\nNothing was wrong.")


if __name__ == "__main__":
    main()
