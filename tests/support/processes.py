"""Starts programs for the tests. None of them outlives the test run, however that ends.

Run as a program, this module is the watcher: it reads process groups from a pipe, and kills them when the pipe is closed. That
also works if Ctrl-C arrives before a fixture is set up, or if pytest-xdist kills a worker.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
import requests


def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start ``command`` in its own process group."""
    process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)
    kill_at_end(process.pid)
    return process


def wait_until_serving(process: Any, url: str, seconds: float) -> bool:
    """Wait for a response from ``url``. Return whether there was one before ``process`` ended and ``seconds`` passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(requests.RequestException):
            requests.get(url, timeout=seconds)
            return True
        time.sleep(0.05)
    return False


def kill_at_end(group: int) -> None:
    """Kill the process group ``group`` when this process ends."""
    pipe = _watcher().stdin
    assert pipe
    pipe.write(f"{group}\n")
    pipe.flush()


@functools.cache
def _watcher() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, start_new_session=True, text=True)


def _watch() -> None:
    started: dict[int, float] = {}
    for line in sys.stdin:
        with suppress(psutil.NoSuchProcess):
            started[int(line)] = psutil.Process(int(line)).create_time()
    for group, at in started.items():
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(group).create_time() != at:
                continue  # the number belongs to another process now
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _watch()
