"""Fixtures of the tests of the chat."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.sessions import SessionStore
from tests.support.agents_under_test import seen, spoken
from tests.support.applications import Start
from tests.support.attachments import OFFERED
from tests.support.chat import Caller
from tests.support.fake_openai import FakeOpenAI
from tests.support.responses_api import says, streaming


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


@pytest.fixture
def attaching(start: Start, fake_openai: FakeOpenAI) -> Caller:
    """A caller of a chat that takes attachments."""
    fake_openai.behaviour = streaming(says("I see"))
    return start("simple", **OFFERED)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Query the database of ``start``."""
    engine = create_engine(f"sqlite:///{tmp_path}/chatkit.db")

    def query(statement: str) -> list[Any]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    yield query
    engine.dispose()


@pytest.fixture
def change(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Change the database of ``start``."""
    engine = create_engine(f"sqlite:///{tmp_path}/chatkit.db")

    def execute(statement: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement))

    yield execute
    engine.dispose()


@pytest.fixture
def maintain(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Do what the service does every 30 s with the database of ``start``."""
    engine = open_database(f"sqlite:///{tmp_path}/chatkit.db")
    yield SessionStore(engine, ttl=600).maintain
    engine.dispose()
