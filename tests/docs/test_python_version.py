"""``.python-version``."""

from __future__ import annotations

import tomllib

from packaging.specifiers import SpecifierSet

from tests.support.service import PROJECT


def test_python_version_is_supported() -> None:
    """Heroku, Render and Railway read ``.python-version``, and otherwise use their default."""
    supported = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert (PROJECT / ".python-version").read_text().strip() in SpecifierSet(supported)
