"""Databases on the PostgreSQL server of the test run."""

from __future__ import annotations

import uuid

import psycopg


def new_postgres_database(server: str) -> str:
    """Create an empty database on ``server`` and return its address."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.replace("@/postgres?", f"@/{name}?")
