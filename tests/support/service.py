"""The service as a team deploys it: gunicorn, started by the Procfile's own line, in a process of its own."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import requests

from chatkit.settings import VARIABLES
from tests.support import processes
from tests.support.forks import ForkedGunicorn

PROJECT = Path(__file__).resolve().parents[2]
SECRET_KEY = "a-key-of-the-tests-and-nobody-else"
output: list[str] = []
"""All that every service of this test run has written."""


def free_port() -> int:
    """A port that nothing listens on.

    It is below those that systems hand out for outgoing connections, and each worker of pytest-xdist has ports of its own, so
    what is free now will be free when it is used.
    """
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.cycle(range(12_000 + 1000 * _worker + os.getpid() % 500, 13_000 + 1000 * _worker))


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with these settings and no others: a blank one hides what a developer's .env has."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    blank = dict.fromkeys(VARIABLES, "")
    # The tests come from one address, and most are not about how often they do.
    often = {"RATE_LIMIT": "1000000"}
    if variables.get("CHATKIT_BACKEND") == "selfhosted":
        often["CHATKIT_MAX_REQUESTS_PER_MINUTE"] = "1000000"
    return {**os.environ, **blank, "PATH": path, "SECRET_KEY": SECRET_KEY, **often, **variables}


class Service:
    """A running service. Leaving the ``with`` block stops it and keeps what it logged."""

    def __init__(self, app: str = "", **variables: str) -> None:
        self.port = int(variables.get("PORT") or free_port())
        *command, deployed = shlex.split((PROJECT / "Procfile").read_text().partition("web:")[2])
        command.append(app or deployed)
        self._written = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115  no pipe: a full one would stop the service
        env = environment(**{**variables, "PORT": str(self.port)})
        self.process: subprocess.Popen[str] | ForkedGunicorn
        if variables.get("CHATKIT_BACKEND") == "selfhosted":
            self.process = ForkedGunicorn(command, env, Path(self._written.name))
            processes.kill_at_end(self.process.pid)
        else:
            self.process = processes.start(command, cwd=PROJECT, env=env, stdout=self._written, stderr=subprocess.STDOUT)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = ""

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                requests.get(f"{self.url}/healthz", timeout=1)
            except requests.RequestException:
                time.sleep(0.05)
            else:
                return self
        self.stop()
        raise AssertionError(f"the service did not start:\n{self.log}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> str:
        """Stop it, wait for its end, and return all that it wrote."""
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
        """What it has written, while it runs."""
        return Path(self._written.name).read_text()

    def mint(self, **options: object) -> requests.Response:
        """``POST /api/chatkit/sessions``."""
        return requests.post(f"{self.url}/api/chatkit/sessions", timeout=30, **options)  # type: ignore[arg-type]
