"""The operator's commands as an operator runs them: ``flask --app app …``, each in a process."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.support import processes, service
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI
from tests.support.fake_server import Handler
from tests.support.forks import ForkedCommand, run_flask
from tests.support.service import PROJECT, Service, environment, free_port
from tests.support.threads_api import Project, answers, asks

Process = ForkedCommand | subprocess.Popen[Any]
Flask = Callable[..., Process]
FLASK = """
import signal
from flask.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a background job of a shell
main()
"""
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def project(fake_openai: FakeOpenAI) -> Project:
    fake_openai.behaviour = project = Project()
    return project


@pytest.fixture
def flask(fake_openai: FakeOpenAI, database: str) -> Flask:
    """Starts a command in a fork, or in a Python process of its own if ``python`` has settings for that."""

    def start(
        *arguments: str, python: dict[str, str] | None = None, output: Any = None, errors: Any = None, **given: str
    ) -> Process:
        hosted = {"CHATKIT_BACKEND": "hosted", "CHATKIT_WORKFLOW_ID": WORKFLOW_ID, "OPENAI_API_KEY": API_KEY}
        settings = {**hosted, "CHATKIT_API_BASE": fake_openai.url, "CHATKIT_ALLOWED_ORIGINS": "https://app.example.com"}
        variables = environment(**{**settings, "DATABASE_URL": database, **given})
        arguments = ("--app", "app", *arguments)
        if python is None:
            return ForkedCommand(run_flask, list(arguments), variables, output=output, errors=errors)
        command = [sys.executable, "-c", FLASK, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return processes.start(command, cwd=PROJECT, env={**variables, **python}, **pipes)

    return start


def outcome(process: Process) -> tuple[int, str, str]:
    """The exit code, standard output, and standard error without the notice about the hosted backend."""
    written = [part.decode() for part in process.communicate(timeout=90)]
    service.output.extend(written)  # searched for secrets
    errors = [line for line in written[1].splitlines(keepends=True) if not line.startswith("CHATKIT_BACKEND=hosted: ")]
    return process.wait(), written[0], "".join(errors)


def stored(database: str) -> tuple[int, int]:
    with create_engine(database).connect() as connection:
        counts = [connection.execute(text(f"SELECT count(*) FROM {table}")) for table in ("chat_threads", "chat_items")]
        return counts[0].scalar_one(), counts[1].scalar_one()


def fill(project: Project, threads: int, items: int = 3) -> None:
    for number in range(threads):
        project.add(f"user:{number % 7}", *(answers(f"Secret words {n}") for n in range(items)))


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_import_that_is_ended_in_the_middle(project: Project, flask: Flask, database: str, sign: signal.Signals) -> None:
    fill(project, 20)
    running: list[Process] = []

    def end(handler: Handler) -> None:
        time.sleep(0.5)  # until the command waits for the response: Python complains about one that is only half made
        running[0].send_signal(sign)
        time.sleep(0.5)
        project(handler)

    project.faults = {12: end}
    running.append(flask("import-hosted"))
    code, output, errors = outcome(running[0])
    if sign == signal.SIGINT:
        assert code == 1
        assert "Stored: 10 new threads, 0 with changes, 30 new items, 0 changed items." in output
        assert "Interrupted after 11 threads. Run the command again to continue; what has been read is stored." in errors
        assert "Traceback" not in errors
    else:
        assert code == -sign
        assert (output, errors) == ("", "")
    assert stored(database) == (10, 30)

    project.faults = {}
    code, output, errors = outcome(flask("import-hosted"))
    assert (code, errors) == (0, "")
    assert "Stored: 10 new threads, 0 with changes, 30 new items, 0 changed items." in output
    assert "20 imported threads with 60 items that were not used here since; all are complete." in output
    assert stored(database) == (20, 60)


@pytest.mark.parametrize("backend", ["hosted", "selfhosted"])
def test_import_beside_a_running_service(
    fake_openai: FakeOpenAI, project: Project, flask: Flask, database: str, backend: str
) -> None:
    fill(project, 30)
    variables = {"CHATKIT_BACKEND": backend, "OPENAI_API_KEY": API_KEY, "CHATKIT_WORKFLOW_ID": WORKFLOW_ID}
    with Service(**variables, DATABASE_URL=database, CHATKIT_API_BASE=fake_openai.url, WEB_CONCURRENCY="1") as running:
        code, output, _ = outcome(flask("import-hosted", CHATKIT_BACKEND=backend))
        assert (code, "30 new threads" in output) == (0, True)
    assert "ERROR" not in running.log


@on_sqlite
def test_progress_on_a_terminal(project: Project, flask: Flask, database: str) -> None:
    fill(project, 3)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        output = flask("import-hosted", errors=terminal).communicate(timeout=60)[0].decode()
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "Threads" in shown
    assert "3" in shown
    assert "Stored: 3 new threads" in output
    assert "\x1b" not in output


def test_export_into_a_pipe_that_is_closed(flask: Flask, project: Project, database: str) -> None:
    project.add("user:a", *(asks("x" * 10_000) for _ in range(100)))
    assert outcome(flask("import-hosted"))[0] == 0
    process = flask("users", "export", "user:a")
    assert process.stdout
    assert process.stdout.read(100).startswith(b'{"user": "user:a"')
    process.stdout.close()
    assert process.stderr
    assert process.wait(30) == 1
    assert b"Traceback" not in process.stderr.read()


@on_sqlite
def test_export_is_utf_8_whatever_the_locale(flask: Flask, project: Project, database: str) -> None:
    project.add("user:a", asks("✓ é"))
    outcome(flask("import-hosted"))
    code, output, _ = outcome(flask("users", "export", "user:a", python={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}))
    assert code == 0
    assert json.loads(output)["threads"][0]["items"][0]["content"][0]["text"] == "✓ é"


@on_sqlite
def test_what_the_terminal_can_not_show_is_escaped(flask: Flask, project: Project, database: str) -> None:
    project.add("user:a", title="é ✓")
    outcome(flask("import-hosted"))
    process = flask("threads", "list", "user:a", python={"PYTHONIOENCODING": "latin-1"})
    assert process.communicate(timeout=90)[0].endswith(b"\xe9 \\u2713\n")
    assert process.returncode == 0


@on_sqlite
def test_output_on_a_full_disk(flask: Flask, project: Project, database: str) -> None:
    project.add("user:a", asks("Hello"))
    with Path("/dev/full").open("w") as full:
        for command in (
            ["import-hosted"],
            ["users", "export", "user:a"],
            ["threads", "list", "user:a"],
            ["feedback", "export"],
        ):
            process = flask(*command, output=full)
            errors = process.communicate(timeout=90)[1].decode()
            assert process.returncode == 1
            assert errors.endswith("Error: The output can't be written: No space left on device.\n")
            assert "Traceback" not in errors


@on_sqlite
@pytest.mark.slow
def test_argument_that_is_not_utf_8(flask: Flask) -> None:
    wrong = os.fsdecode(b"user:\xff")
    for command in (["users", "export"], ["users", "delete", "--yes"], ["threads", "list"], ["import-hosted", "--user"]):
        code, output, errors = outcome(flask(*command, wrong, python={}))
        assert (code, output) == (2, "")
        assert errors.endswith(": is not encoded in UTF-8\n")


@on_sqlite
def test_settings_that_an_operator_may_forget(flask: Flask) -> None:
    code, output, errors = outcome(flask("import-hosted", OPENAI_API_KEY=""))
    assert (code, output) == (1, "")
    assert errors.endswith("Error: OPENAI_API_KEY is not set; the conversations are read with it.\n")
    assert "Traceback" not in errors
    code, output, errors = outcome(flask("users", "export", "user:a", SECRET_KEY=""))
    assert (code, output) == (1, "")
    assert errors.startswith("chatkit: cannot start. SECRET_KEY is missing")


@on_sqlite
def test_database_that_can_not_be_reached(flask: Flask) -> None:
    address = f"sqlite:////proc/nowhere/{free_port()}.db"
    for command in (["import-hosted"], ["users", "delete", "user:a", "--yes"], ["feedback", "export"]):
        code, output, errors = outcome(flask(*command, DATABASE_URL=address))
        assert (code, output) == (1, "")
        assert errors.startswith("Error: DATABASE_URL: the database can't be reached or written")
        assert errors.count("\n") == 1


@on_sqlite
def test_sqlite_is_still_written_by_others_during_an_import(project: Project, flask: Flask, database: str) -> None:
    """While OpenAI is asked, no transaction is open."""
    fill(project, 3)
    seconds: list[float] = []

    def write(handler: Handler) -> None:
        started = time.monotonic()
        with sqlite3.connect(database.removeprefix("sqlite:///"), timeout=5) as other:
            other.execute("DELETE FROM chat_sessions")
        seconds.append(time.monotonic() - started)
        project(handler)

    project.faults = dict.fromkeys(range(2, 5), write)
    assert outcome(flask("import-hosted"))[0] == 0
    assert len(seconds) == 3
    assert max(seconds) < 2
