"""A real PgBouncer in transaction mode on a free port."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import psycopg

from tests.support import processes, programs
from tests.support.service import free_port


class PgBouncer:
    """Runs in front of the PostgreSQL server of ``address``, which listens on a socket in a folder."""

    def __init__(self, address: str, folder: Path, server_connections: int) -> None:
        url = urlsplit(address)
        self.port = free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}{url.path}"
        server = Path(parse_qs(url.query)["host"][0])
        users, settings = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        settings.write_text(
            f"""[databases]
* = host={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {server_connections}
"""
        )
        self._command = [programs.find("pgbouncer", package="pgbouncer"), "--quiet", str(settings)]
        if os.getuid() == 0:  # like PostgreSQL, it refuses to run as root
            self._command.insert(1, f"--user={server.owner()}")
            for path in (users, settings, *[parent for parent in folder.resolve().parents if parent.parts[1:2] == ("tmp",)]):
                path.chmod(0o755)
            folder.chmod(0o755)

    def __enter__(self) -> Self:
        self.process = processes.start(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert self.process.poll() is None, "pgbouncer did not start"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)
