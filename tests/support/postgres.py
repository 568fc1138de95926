"""Databases on the PostgreSQL server of the test run."""

from __future__ import annotations

import uuid

import psycopg
from psycopg.conninfo import conninfo_to_dict


def new_postgres_database(server: str, template: str = "") -> str:
    """Create a database on ``server``, empty or as a copy of the one at ``template``, and return its address."""
    name = f"test_{uuid.uuid4().hex}"
    copied = conninfo_to_dict(template).get("dbname", "template1")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{copied}"')
    return server.replace("@/postgres?", f"@/{name}?")


def disable_fsync(server: str) -> None:
    """Let ``server`` not wait for the disk. Otherwise it stops only after all that the tests wrote is on it."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
