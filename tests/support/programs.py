"""The programs that the tests need and that are no packages of Python or npm."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

MISSING = " is missing: apt-get install "


def find(*names: str, package: str) -> str:
    """The path of the first of ``names`` that is installed; without any, the test is skipped."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])  # where Debian has daemons
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    return found or skip(names[0], package)


def skip(name: str, package: str) -> NoReturn:
    pytest.skip(f"{name}{MISSING}{package}")
