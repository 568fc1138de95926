"""The documentation: the README's commands in a fresh copy of the project, tables, links."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

import chatkit.backends.hosted.errors  # noqa: F401  so that all errors are known
from chatkit.settings import VARIABLES, Settings
from chatkit.web.errors import ApiError, NotFound
from tests.support import processes, programs
from tests.support.service import PROJECT, free_port, output

README = (PROJECT / "README.md").read_text()
DOCS = PROJECT / "docs"
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
NEXT_PUBLIC = (PROJECT / "frontend/.env.example").read_text()


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Run ``make run`` in a fresh copy without a virtual environment. Yield the port and the folder."""
    programs.find("git", package="git")
    copy = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (PROJECT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, copy / name)
    # Only what is needed to find programs and packages; and PORT, because another test run may use 8000.
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


def test_tests_of_the_contract_page_exist() -> None:
    files = {
        "config": "frontend/lib/chatkit-config.test.ts",
        "options": "frontend/lib/chatkit-options.test.ts",
        "hook": "frontend/lib/use-chatkit.test.tsx",
        "window": "frontend/components/ChatWindow.test.tsx",
        "browser": "tests/browser/test_frontend.py",
    }
    text = " ".join((PROJECT / "docs/contract.md").read_text().split())
    named = re.findall(r"(config|options|hook|window|browser|`tests/[^`]+`): `([^`]+)`", text)
    assert len(named) > 30
    for file, name in named:
        source = (PROJECT / files.get(file, file.strip("`"))).read_text()
        assert f"def {name}(" in source or f"'{name}'" in source, (file, name)


def readme_curl(port: int, *options: str) -> tuple[int, dict[str, str], str]:
    """Run the README's ``curl`` with the port of this test. Return status, data and the cookie it set."""
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


def test_readmes_curl(make_run: tuple[int, Path]) -> None:
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


def test_response_in_the_readme_has_the_real_shape(make_run: tuple[int, Path]) -> None:
    shown = re.search(r'^\{"status":"success".*$', README, re.MULTILINE)
    assert shown
    _, data, _ = readme_curl(make_run[0])
    example = json.loads(shown[0])["data"]
    assert list(example) == list(data)
    assert [len(str(value)) for value in example.values()] == [len(str(value)) for value in data.values()]


def test_readmes_second_curl_streams_a_reply(make_run: tuple[int, Path]) -> None:
    port, _ = make_run
    _, data, _ = readme_curl(port)
    command = re.search(r"\$ (curl -N .*)", README)
    assert command
    line = command[1].replace(":8000", f":{port}").replace("cs_8KQF…", data["client_secret"])
    process = subprocess.Popen(shlex.split(line), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith('data: {"type":"thread.created"')
    first = time.monotonic()
    rest = process.stdout.read()
    assert rest.count("text_delta") > 20
    assert time.monotonic() - first > 0.5, "the first event arrives before the last one is written"
    assert process.wait(10) == 0


def test_make_run_prints_the_curl_command(make_run: tuple[int, Path]) -> None:
    port, copy = make_run
    written = (copy / "output.txt").read_text()
    assert f"curl -X POST http://localhost:{port}/api/chatkit/sessions" in written
    assert "Traceback" not in written
    assert " WARNING " not in written


def test_make_run_refuses_other_host_names(make_run: tuple[int, Path]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", make_run[0], timeout=5)
    connection.request("POST", "/api/chatkit/sessions", headers={"Host": "rebound.evil.test"})
    assert connection.getresponse().status == 400
    connection.close()


def test_make_run_leaves_only_ignored_files(make_run: tuple[int, Path]) -> None:
    _, copy = make_run
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    shown = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=copy, capture_output=True, text=True, check=True
    ).stdout
    left = {line[3:] for line in shown.splitlines()} - {"output.txt"}
    assert {name for name in left if not (PROJECT / name).exists()} == set()


def test_table_of_settings_is_complete() -> None:
    names = re.findall(r"^\| `([A-Z_]+)` \|", (DOCS / "settings.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(VARIABLES)


def test_tables_of_errors_are_complete() -> None:
    api = (DOCS / "api.md").read_text()
    for error in ApiError.__subclasses__():
        if error is not NotFound:  # its row has another code as well
            assert f"| {error.status:d} | `{error.code}` | {error.message} |" in api


def test_documented_settings_exist() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\b((?:CHATKIT|AUTH)_[A-Z_]*[A-Z]|RATE_LIMIT|REDIS_URL|DATABASE_URL)\b", page.read_text())
    }
    assert len(named) > 30
    assert {name for name in named if f"NEXT_PUBLIC_{name}" not in NEXT_PUBLIC} <= VARIABLES


def test_readme_is_short() -> None:
    assert len(README.encode()) <= 7000


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of ``page`` on GitHub."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_internal_links(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+\.md)", README))
    assert linked == {str(page.relative_to(PROJECT)) for page in PAGES if page.name != "README.md"}


def test_files_in_deployment_commands_exist() -> None:
    blocks = re.findall(r"(?ms)^```console\n(.*?)^```", (DOCS / "deployment.md").read_text())
    named = set(re.findall(r"/opt/chatkit/(?!\.venv)(\S+)", "".join(blocks)))
    assert named == {"requirements.txt", "deploy/chatkit.service", "deploy/nginx.conf"}
    assert all((PROJECT / name).exists() for name in named)


def test_generated_secrets_are_accepted(tmp_path: Path) -> None:
    command = re.search(r"^\$ (python3 -c .* >> \.env)$", (DOCS / "deployment.md").read_text(), re.MULTILINE)
    assert command
    subprocess.run(["sh", "-c", command[1]], cwd=tmp_path, check=True)
    given = dotenv_values(tmp_path / ".env")
    assert set(given) == {"SECRET_KEY", "POSTGRES_PASSWORD"}
    Settings.load({}, given)


def test_revision_in_the_contributing_guide_is_the_next() -> None:
    versions = (PROJECT / "chatkit/backends/selfhosted/database/migrations/versions").glob("[0-9]*.py")
    newest = max(int(path.name[:4]) for path in versions)
    assert f"--rev-id {newest + 1:04}" in (PROJECT / "CONTRIBUTING.md").read_text()


def test_production_settings_are_accepted() -> None:
    """The minimal settings of docs/deployment.md and the complete ones of docs/security.md, with secrets filled in."""
    for page, heading in (("deployment.md", "Set at least these"), ("security.md", "## Production, on one page")):
        block = re.search(r"```sh\n(.*?)```", (DOCS / page).read_text().partition(heading)[2], re.DOTALL)
        assert block
        # As Docker and systemd read a file of settings: whole lines, and comments only on lines of their own.
        given = dict(line.split("=", 1) for line in block[1].splitlines() if not line.startswith("#"))
        assert given.keys() <= VARIABLES
        given |= {"SECRET_KEY": secrets.token_hex(32), "DATABASE_URL": "postgresql://database.example.com/chatkit"}
        given["OPENAI_API_KEY"] = "sk-proj-1"
        assert Settings.load(given).backend == "selfhosted"


@pytest.mark.parametrize("page", [path.name for path in DOCS.glob("*.md")])
def test_settings_have_no_comments_behind_them(page: str) -> None:
    """Docker and systemd would take them for a part of the value."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (DOCS / page).read_text())
    assert [line for line in "".join(blocks).splitlines() if re.match(r"(?!NEXT_PUBLIC)[A-Z_]+=.*\s#", line)] == []
