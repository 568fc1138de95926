"""Fixtures of the tests of the chat."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.agents_under_test import seen, spoken


@pytest.fixture
def usage_lines() -> Iterator[list[dict[str, Any]]]:
    """The structured lines about usage."""
    found: list[dict[str, Any]] = []
    names = ("model_requests", "input_tokens", "output_tokens", "total_tokens", "agents")

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "total_tokens"):
                found.append({name: getattr(record, name) for name in names})

    handler, logger = Lines(), logging.getLogger("chatkit.backends.selfhosted.chat.usage")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    """No agent has noted anything in ``agents_under_test`` yet."""
    seen.clear()
    spoken.clear()
