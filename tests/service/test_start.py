"""What is checked before gunicorn starts: settings, ``WEB_CONCURRENCY``, which it reads at its import, and the port."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.service import PROJECT, Service, environment, output

WRONG = ["two", "0", "-1", "65", "1.5"]
MESSAGE = "chatkit: cannot start. WEB_CONCURRENCY must be a whole number from 1 to 64 (processes)."
PUBLISHED = "change-this-to-64-random-hex-characters"


@pytest.mark.parametrize("value", WRONG)
def test_invalid_value_is_a_one_line_error(value: str) -> None:
    service = Service(WEB_CONCURRENCY=value)
    with pytest.raises(AssertionError, match="did not start"):
        service.__enter__()
    assert service.process.returncode == 1
    assert service.log.strip() == MESSAGE


@pytest.mark.parametrize("value", WRONG)
def test_invalid_value_in_development(value: str) -> None:
    variables = environment(WEB_CONCURRENCY=value, CHATKIT_ENV="")
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=PROJECT, env=variables, capture_output=True, text=True, check=False, timeout=30
    )
    output.append(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == MESSAGE


def test_port_in_use_in_development() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = environment(PORT=str(port), CHATKIT_ENV="development")
        command = [sys.executable, "app.py"]
        done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False, timeout=30)
    output.append(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    advice = f"Port {port} is in use. Use another: `PORT={port + 1} make run`."
    assert done.stderr == f"chatkit: cannot start. {advice}\n"


@pytest.mark.parametrize(("value", "workers"), [("", 2), (" ", 2), ("1", 1), (" 3 ", 3)])
def test_number_of_processes(value: str, workers: int) -> None:
    with Service(WEB_CONCURRENCY=value) as service:
        gunicorn = psutil.Process(service.process.pid)
        deadline = time.monotonic() + 5
        while len(gunicorn.children()) < workers and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # in which a surplus process would start
        assert len(gunicorn.children()) == workers


def test_service_does_not_start() -> None:
    service = Service(SECRET_KEY=PUBLISHED)
    with pytest.raises(AssertionError, match=r"cannot start\. SECRET_KEY is published"):
        service.__enter__()
    assert PUBLISHED not in service.log


def test_notice_is_logged_at_start_up() -> None:
    with Service(CHATKIT_ALLOWED_ORIGINS="https://*.co.uk") as service:
        pass
    assert service.log.count("names below co.uk") == 1
