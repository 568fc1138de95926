"""Processes that tests start end with the test run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.service import PROJECT

STARTING = """
import signal
import time

from tests.support.service import {service}

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run as a shell's background job
service = {service}()
print(service.process.pid, flush=True)
with service:
    print("started", flush=True)
    for _ in range(600):
        time.sleep(0.1)  # not one blocking call: a signal just before that would not interrupt it
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("started", [False, True], ids=["while starting", "while running"])
@pytest.mark.parametrize("service", ["Service", "DeployedService"])
def test_interrupted_run_ends_its_processes(service: str, sign: signal.Signals, started: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTING.format(service=service)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout
        gunicorn = psutil.Process(int(run.stdout.readline()))
        if started:
            assert run.stdout.readline() == "started\n"
        processes = psutil.Process(run.pid).children(recursive=True)
        assert gunicorn in processes
        if sign == signal.SIGTERM:
            os.killpg(run.pid, sign)  # as timeout(1) does
        else:
            run.send_signal(sign)
        run.wait(20)
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
    assert alive == []
