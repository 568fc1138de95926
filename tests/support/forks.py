"""Starts gunicorn in a fork of a process that has already imported OpenAI's packages, which takes 2.5 s of processor time.

The fork then behaves like a gunicorn started with the same command line and environment.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.preloaded"])


class ForkedGunicorn:
    """A gunicorn with the part of ``subprocess.Popen``'s interface that the tests use."""

    def __init__(self, command: list[str], env: dict[str, str], output: Path) -> None:
        self._process = _context.Process(target=_run, args=(command, env, output), daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("gunicorn", timeout)
        return self.returncode

    def send_signal(self, sign: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(command: list[str], env: dict[str, str], output: Path) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    if max_files := env.get("TEST_MAX_FILES"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(max_files), int(max_files)))
    with output.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    python, option, package, *arguments = command
    assert (option, package) == ("-m", "chatkit"), command
    sys.argv = [python, *arguments]
    from chatkit.__main__ import main

    main()
