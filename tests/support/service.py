"""The service as it is deployed: gunicorn, started with the Procfile's command."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import requests

from chatkit.settings import VARIABLES
from tests.support import processes
from tests.support.forks import ForkedProcess, run_gunicorn, service_server

PROJECT = Path(__file__).resolve().parents[2]
SECRET_KEY = "a-key-of-the-tests-and-nobody-else"
output: list[str] = []
"""The logs of all services of this test run."""


def free_port() -> int:
    """Return a port that nothing listens on.

    It is below the range for outgoing connections, and each worker of pytest-xdist has its own range, so it stays free until
    it is used.
    """
    for port in _ports(os.getpid()):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@functools.cache
def _ports(process: int) -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return itertools.cycle(range(12_000 + 1000 * worker + process % 500, 13_000 + 1000 * worker))


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with only these settings. Blank ones override those of a developer's .env."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    blank = dict.fromkeys(VARIABLES, "")
    # All tests share one address, and few are about limits.
    often = {"RATE_LIMIT": "1000000"}
    if variables.get("CHATKIT_BACKEND") == "selfhosted":
        often["CHATKIT_MAX_REQUESTS_PER_MINUTE"] = "1000000"
    return {**os.environ, **blank, "PATH": path, "SECRET_KEY": SECRET_KEY, **often, **variables}


class Service:
    """A running service, forked from a process that has imported it. Leaving the ``with`` block stops it and reads its log."""

    def __init__(self, app: str = "", **variables: str) -> None:
        self.port = int(variables.get("PORT") or free_port())
        *command, deployed = shlex.split((PROJECT / "Procfile").read_text().partition("web:")[2])
        command.append(app or deployed)
        self._written = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115  a full pipe would block the service
        self.process = self._start(command, environment(**{**variables, "PORT": str(self.port)}))
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = ""

    def _start(self, command: list[str], env: dict[str, str]) -> ForkedProcess | subprocess.Popen[str]:
        with Path(os.devnull).open() as nothing, Path(self._written.name).open("a") as output:
            return ForkedProcess(service_server(), run_gunicorn, command, env, files=[nothing, output, output])

    def __enter__(self) -> Self:
        if processes.wait_until_serving(self.process, f"{self.url}/healthz", 30):
            return self
        self.stop()
        raise AssertionError(f"the service did not start:\n{self.log}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> str:
        """Stop the service, wait for its end, and return its log."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        self.process.wait(timeout=40)
        if not self._written.closed:
            self._written.seek(0)
            self.log = self._written.read()
            self._written.close()
            output.append(self.log)
        return self.log

    def log_so_far(self) -> str:
        """Return the log of the running service."""
        return Path(self._written.name).read_text()

    def create_session(self, **options: object) -> requests.Response:
        """``POST /api/chatkit/sessions``."""
        return requests.post(f"{self.url}/api/chatkit/sessions", timeout=30, **options)  # type: ignore[arg-type]


class DeployedService(Service):
    """A service started by the Procfile's command, which takes a second or more."""

    def _start(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        return processes.start(command, cwd=PROJECT, env=env, stdout=self._written, stderr=subprocess.STDOUT)
