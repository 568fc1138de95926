"""Programs that tests need and that are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.service import PROJECT

TEST = """
import pytest
from tests.support import programs

@pytest.fixture
def browser():
    programs.find("no-such-browser", package="no-such-package")

@pytest.mark.parametrize("number", range(2))
def test_one(number, browser):
    pass

def test_another(browser):
    pass
"""


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``TEST`` with this project's pytest options and hooks."""
    (folder / "test_it.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest", f"--rootdir={PROJECT}"]
    command += [f"--config-file={PROJECT}/pyproject.toml", *options, str(folder)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)


def test_skip_line_names_the_package(tmp_path: Path) -> None:
    run = run_pytest(tmp_path)
    assert run.returncode == 0, run.stdout
    [line] = [line for line in run.stdout.splitlines() if "no-such-browser" in line]
    assert line.startswith("SKIPPED [3] ")
    assert line.endswith("no-such-browser is missing: apt-get install no-such-package")


@pytest.mark.slow
def test_missing_program_is_an_error_with_no_skips(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "--no-skips")
    assert run.returncode == 1
    assert "3 errors" in run.stdout
    assert "no-such-browser is missing: apt-get install no-such-package" in run.stdout


def test_daemons_are_found_outside_of_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.find("no-such-program", "chroot", package="coreutils") == "/usr/sbin/chroot"
