"""Fixtures of the tests of the database."""

from __future__ import annotations

import pytest

from tests.support.postgres import new_postgres_database


@pytest.fixture
def postgresql(postgres: str) -> str:
    """The address of an empty PostgreSQL database."""
    return new_postgres_database(postgres)
