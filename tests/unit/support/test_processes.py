"""Processes that tests start end with the test run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.forks import ForkedCommand
from tests.support.service import PROJECT, DeployedService, Service

OWN_FORK_SERVER = "from tests.unit.support.test_processes import run_service, Service; run_service(Service)"


def run_service(kind: type[Service]) -> None:
    """Be a test run: start a service, print its process id and when it is serving, and wait."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run as a shell's background job
    service = kind()
    os.write(1, f"{service.process.pid}\n".encode())
    with service:
        os.write(1, b"started\n")
        for _ in range(600):
            time.sleep(0.1)  # not one blocking call: a signal just before that would not interrupt it


def run_service_in_a_session(kind: type[Service]) -> None:
    os.setsid()
    run_service(kind)


def end_and_find_survivors(run: ForkedCommand | subprocess.Popen[bytes], sign: signal.Signals, started: bool) -> list[int]:
    assert run.stdout
    gunicorn = psutil.Process(int(run.stdout.readline()))
    if started:
        assert run.stdout.readline() == b"started\n"
    processes = {gunicorn, *gunicorn.children(recursive=True), *psutil.Process(run.pid).children(recursive=True)}
    if sign == signal.SIGTERM:
        os.killpg(run.pid, sign)  # as timeout(1) does
    else:
        run.send_signal(sign)
    run.wait(20)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        process.kill()
    return [process.pid for process in alive]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("started", [False, True], ids=["while starting", "while running"])
@pytest.mark.parametrize("kind", [Service, DeployedService])
@pytest.mark.slow
def test_interrupted_run_ends_its_processes(kind: type[Service], sign: signal.Signals, started: bool) -> None:
    """The run is a process of pytest-xdist: it shares the fork server of the others."""
    with Path(os.devnull).open("w") as discarded:
        run = ForkedCommand(run_service_in_a_session, kind, errors=discarded)
    assert end_and_find_survivors(run, sign, started) == []


@pytest.mark.slow
def test_interrupted_run_ends_its_fork_server() -> None:
    command = [sys.executable, "-c", OWN_FORK_SERVER]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        assert end_and_find_survivors(run, signal.SIGKILL, started=True) == []
