"""The Python that platforms install."""

from __future__ import annotations

import tomllib

from packaging.specifiers import SpecifierSet

from tests.support.service import PROJECT


def test_platforms_install_a_python_that_the_project_supports() -> None:
    """Heroku, Render and Railway read ``.python-version``, and otherwise have a default of their own."""
    supported = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert (PROJECT / ".python-version").read_text().strip() in SpecifierSet(supported)
