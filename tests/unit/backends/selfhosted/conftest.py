"""Databases and stores of conversations."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from tests.support.store import IMAGE_URLS


@pytest.fixture
def engine(database: str) -> Engine:
    return open_database(database)


@pytest.fixture
def store(engine: Engine) -> SqlStore:
    return SqlStore(engine, IMAGE_URLS)
