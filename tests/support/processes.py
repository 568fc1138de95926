"""The programs that the tests start. None of them outlives the test run, however that ends.

Run as a program, this module is the watcher: it reads process groups from a pipe whose other end the tests hold, and kills
them when that is closed. Ctrl-C can come before a fixture is set up, and pytest-xdist kills workers; the pipe is closed always.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import psutil


def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start ``command`` in a process group of its own."""
    process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)
    kill_at_end(process.pid)
    return process


def kill_at_end(group: int) -> None:
    """Have the process group ``group`` killed when this process ends."""
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
                continue  # the number belongs to another process by now
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _watch()
