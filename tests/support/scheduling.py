"""The distribution and order of the tests if pytest-xdist runs them in several processes.

``--dist=loadgroup`` is of no use here: pytest-xdist 3.8 puts the group into ``item._nodeid``, which pytest 9.2 no longer reads.
"""

from __future__ import annotations

import functools
import itertools
import re
import zlib

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.support.service import PROJECT


def unit_of(node_id: str) -> str:
    """The unit of a test. Tests of the same unit run one after another in the same process."""
    file = node_id.partition("::")[0]
    if not _shares(file):
        return node_id
    # These have their own fixtures: the tests of one kind of database, and those of the app for hosted sessions.
    part = re.search(r"\[(?:sqlite|postgresql)\b|::TestHosted", node_id)
    return f"{file} {part[0]}" if part else file


def arrange(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return ``items`` in the order in which they should start.

    Browser tests start first, because they take longest and are the busiest. Every second process starts with tests that share
    another fixture. All others are mixed, because those with services wait most of their time, and the unit tests of one folder
    after another would keep the processors busy.
    """
    units: dict[str, list[pytest.Item]] = {}
    for item in items:
        units.setdefault(unit_of(item.nodeid), []).append(item)
    browser = [name for name in units if _uses_browser(name)]
    shared = [name for name in units if ".py::" not in name and not _uses_browser(name)]
    others = sorted((name for name in units if ".py::" in name), key=_position)
    alternating = [name for pair in itertools.zip_longest(browser, shared) for name in pair if name]
    return [item for name in [*alternating, *others] for item in units[name]]


def _position(unit: str) -> float:
    position = zlib.crc32(unit.encode()) / 2**32  # the same in each process
    return position if unit.startswith("tests/unit/") else 0.8 * position  # long tests should not start last


@functools.cache
def _shares(file: str) -> bool:
    path = PROJECT / file
    return _uses_browser(file) or (path.is_file() and 'scope="module"' in path.read_text())


def _uses_browser(file: str) -> bool:
    return file.startswith("tests/browser/")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
