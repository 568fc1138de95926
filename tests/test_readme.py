"""What the README promises, done as a newcomer does it: a copy of the project, an empty environment, its own commands."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatkit.settings import VARIABLES
from chatkit.web.errors import ApiError, NotFound, NotReady
from tests import processes
from tests.service import PROJECT, free_port, output

README = (PROJECT / "README.md").read_text()


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """``make run`` in a fresh copy, without a virtual environment to start from."""
    copy = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (PROJECT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, copy / name)
    # Only what finds programs and packages; PORT, because another test run may have 8000.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name.startswith(("PIP_", "SSL_"))}
    port = free_port()
    with (copy / "output.txt").open("w+") as written:
        variables = {**kept, "PORT": str(port)}
        process = processes.start(["make", "run"], cwd=copy, env=variables, stdout=written, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 300
            while "Try:" not in (copy / "output.txt").read_text():
                assert process.poll() is None, (copy / "output.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield port, copy
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(30)
            output.append((copy / "output.txt").read_text())


def test_each_test_that_the_contract_names_exists() -> None:
    files = {
        "config": "frontend/lib/chatkit-config.test.ts",
        "options": "frontend/lib/chatkit-options.test.ts",
        "hook": "frontend/lib/use-chatkit.test.tsx",
        "window": "frontend/components/ChatWindow.test.tsx",
        "browser": "tests/test_frontend.py",
    }
    text = " ".join((PROJECT / "docs/contract.md").read_text().split())
    named = re.findall(r"(config|options|hook|window|browser|`tests/[^`]+`): `([^`]+)`", text)
    assert len(named) > 30
    for file, name in named:
        source = (PROJECT / files.get(file, file.strip("`"))).read_text()
        assert f"def {name}(" in source or f"'{name}'" in source, (file, name)


def readme_curl(port: int, *options: str) -> tuple[int, dict[str, str], str]:
    """The README's ``curl``, at the port of this test: status, data and the cookie it set."""
    command = re.search(r"\$ (curl -X POST http://localhost:8000/\S+)", README)
    assert command
    line = command[1].replace(":8000", f":{port}").split()
    done = subprocess.run([*line, "-s", "-i", *options], capture_output=True, text=True, check=True, timeout=30)
    head, _, body = done.stdout.partition("\n\n")
    cookie = re.search(r"(?mi)^set-cookie: ([^;]+)", head)
    return int(head.split()[1]), json.loads(body)["data"], cookie[1] if cookie else ""


def user_of(copy: Path, session_id: str) -> str:
    import sqlite3

    with sqlite3.connect(copy / "instance" / "chatkit.db") as connection:
        user: str = connection.execute("SELECT user_id FROM chat_sessions WHERE id = ?", [session_id]).fetchone()[0]
    return user


def test_make_run_answers_the_readmes_curl(make_run: tuple[int, Path]) -> None:
    port, copy = make_run
    status, data, cookie = readme_curl(port)
    assert status == 200
    assert re.fullmatch(r"cs_[A-Za-z0-9_-]{27,47}", data["client_secret"])
    assert data["session_id"].startswith("ses_")
    assert int(data["expires_in"]) <= 600

    _, again, _ = readme_curl(port, "--cookie", cookie)
    assert user_of(copy, again["session_id"]) == user_of(copy, data["session_id"])
    assert again["client_secret"] != data["client_secret"]

    name, _, value = cookie.partition("=")
    for forged in (value[:-3] + "AAA", "e30" + value[value.index(".") :], "x"):
        status, other, new_cookie = readme_curl(port, "--cookie", f"{name}={forged}")
        assert status == 200
        assert user_of(copy, other["session_id"]) != user_of(copy, data["session_id"])
        assert new_cookie
        assert new_cookie != cookie


def test_the_answer_in_the_readme_has_the_answers_shape(make_run: tuple[int, Path]) -> None:
    shown = re.search(r'^\{"status":"success".*$', README, re.MULTILINE)
    assert shown
    _, data, _ = readme_curl(make_run[0])
    example = json.loads(shown[0])["data"]
    assert list(example) == list(data)
    assert [len(str(value)) for value in example.values()] == [len(str(value)) for value in data.values()]


def test_make_run_streams_the_answer_to_the_readmes_second_curl(make_run: tuple[int, Path]) -> None:
    port, _ = make_run
    _, data, _ = readme_curl(port)
    command = re.search(r"\$ (curl -N .*)", README)
    assert command
    line = command[1].replace(":8000", f":{port}").replace("cs_8KQF…", data["client_secret"])
    started = time.monotonic()
    process = subprocess.Popen(shlex.split(line), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith('data: {"type":"thread.created"')
    assert time.monotonic() - started < 1
    rest = process.stdout.read()
    assert rest.count("text_delta") > 20
    assert process.wait(10) == 0


def test_make_run_says_what_to_try(make_run: tuple[int, Path]) -> None:
    port, copy = make_run
    said = (copy / "output.txt").read_text()
    assert f"curl -X POST http://localhost:{port}/api/chatkit/sessions" in said
    assert "Traceback" not in said
    assert " WARNING " not in said


def test_make_run_serves_this_machine_only(make_run: tuple[int, Path]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", make_run[0], timeout=5)
    connection.request("POST", "/api/chatkit/sessions", headers={"Host": "rebound.evil.test"})
    assert connection.getresponse().status == 400
    connection.close()


def test_nothing_but_what_git_ignores_is_left_behind(make_run: tuple[int, Path]) -> None:
    _, copy = make_run
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    shown = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=copy, capture_output=True, text=True, check=True
    ).stdout
    left = {line[3:] for line in shown.splitlines()} - {"output.txt"}
    assert {name for name in left if not (PROJECT / name).exists()} == set()


def test_the_readme_names_every_setting() -> None:
    settings = README.partition("## Settings")[2].partition("\n## ")[0]
    first_column = " ".join(line.split("|")[1] for line in settings.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`([A-Z_]+)`", first_column)) == VARIABLES


def test_the_readme_has_every_row() -> None:
    answers = README.partition("## Answers")[2].partition("\n## ")[0]
    for problem in ApiError.__subclasses__():
        if problem not in (NotReady, NotFound):  # of /readyz, and one that has the row of its code already
            assert f"| {problem.status.value} | `{problem.code}` | {problem.message} |" in answers


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (PROJECT / target).exists(), target
