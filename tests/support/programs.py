"""Programs that the tests need and that are neither Python nor npm packages."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

MISSING = " is missing: apt-get install "


def find(*names: str, package: str) -> str:
    """Return the path of the first of ``names`` that is installed. If none is, skip the test."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])  # Debian's folder for daemons
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    return found or skip(names[0], package)


def skip(name: str, package: str) -> NoReturn:
    pytest.skip(f"{name}{MISSING}{package}")
