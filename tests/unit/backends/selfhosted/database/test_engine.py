"""The engine's real times, with a clock that jumps, and a network that drops connections without a word."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine, create_engine, exc, insert, text

from chatkit.backends.selfhosted.database import engine as module
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, make_engine, open_database, public_address
from chatkit.backends.selfhosted.database.tables import SessionRow
from chatkit.settings import SettingsError


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("sqlite:////srv/chatkit.db", "sqlite:////srv/chatkit.db"),
        (
            "postgresql+psycopg://ada:hidden@db.example.com:5433/chatkit?password=hidden&sslmode=require",
            "postgresql://db.example.com:5433/chatkit",
        ),
    ],
)
def test_public_address_has_no_secrets(address: str, public: str) -> None:
    assert public_address(create_engine(address)) == public


class Clock:
    """In place of the module ``time``: sleeping takes no time."""

    def __init__(self, now: float = 0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Noting(logging.Handler):
    """The clock's times at which messages were logged."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.noted: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.noted.append((self.clock.now, record.getMessage()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def noted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    handler = Noting(clock)
    monkeypatch.setattr(module.log, "handlers", [handler])
    return handler.noted


def test_connecting_is_tried_every_three_seconds_for_half_a_minute(clock: Clock, noted: list[tuple[float, str]]) -> None:
    with pytest.raises(SettingsError, match="can't be reached"):
        open_database("postgresql+psycopg://user@127.0.0.1:1/db")
    assert clock.now == 30
    assert [now for now, _ in noted] == list(range(0, 30, 3))


def test_migration_of_another_process_may_take_a_minute(postgresql: str, clock: Clock, noted: list[tuple[float, str]]) -> None:
    with create_engine(postgresql).connect() as other:
        other.execute(text("SELECT pg_advisory_lock(4362780117)"))
        with pytest.raises(SettingsError, match="another process has locked it for 60 s"):
            open_database(postgresql)
    assert clock.now == pytest.approx(60, abs=0.3)
    [(now, message)] = noted
    assert message == "Waiting for another process to migrate the database"
    assert now == pytest.approx(2, abs=0.3)


class Network:
    """Between a client and the PostgreSQL server of ``address``. It can lose what is sent on the connections that exist."""

    def __init__(self, address: str) -> None:
        url = urlsplit(address)
        self._server = f"{parse_qs(url.query)['host'][0]}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lost: list[threading.Event] = []
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self._listener.getsockname()[1]}{url.path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def connections(self) -> int:
        return len(self._lost)

    def lose(self) -> None:
        for lost in self._lost:
            lost.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                lost = threading.Event()
                self._lost.append(lost)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, target, lost), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not lost.is_set():
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def one(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT 1")).scalar_one())


@pytest.mark.parametrize("idle", [3, 6])
def test_connection_that_was_idle_for_five_seconds_is_tested(
    postgresql: str, monkeypatch: pytest.MonkeyPatch, idle: float
) -> None:
    monkeypatch.setattr(module, "SERVER_SECONDS", 1)
    with Network(postgresql) as network:
        engine = open_database(network.url, connections=1)
        assert one(engine) == 1
        before = network.connections
        network.lose()
        monkeypatch.setattr(module, "time", Clock(time.monotonic() + idle))
        if idle < 5:
            with pytest.raises(UNAVAILABLE):
                one(engine)
            assert network.connections == before
        else:
            assert one(engine) == 1, "on a new connection"
            assert network.connections == before + 1
        engine.dispose()


@pytest.mark.parametrize("open_", [open_database, make_engine])
@pytest.mark.parametrize("password", ["p@ss", "p#w@d/s"])
def test_password_that_is_not_encoded_is_not_quoted(
    caplog: pytest.LogCaptureFixture, open_: Callable[[str], Any], password: str
) -> None:
    """The driver's error would have the end of it as a host's or database's name."""
    with pytest.raises(SettingsError) as caught:
        open_(f"postgresql+psycopg://chatkit:{password}@127.0.0.1:9/chatkit")
    assert str(caught.value) == "DATABASE_URL: an @ in the user name or the password has to be written as %40."
    assert password.partition("@")[2] not in caplog.text


def test_connection_that_was_just_used_is_not_tested(postgresql: str) -> None:
    engine = open_database(postgresql, connections=1)
    with engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with engine.connect() as connection, create_engine(postgresql).connect() as other:
        query = text("SELECT query FROM pg_stat_activity WHERE pid = :backend")
        assert other.execute(query, {"backend": backend}).scalar_one() != "SELECT 1"
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == backend


def test_error_does_not_quote_the_values_to_be_stored(database: str) -> None:
    row = {"id": "ses_1", "secret_hash": b"hash", "user_id": "user:ada", "expires_at": 1, "claims": "a private claim"}
    engine = open_database(database)
    with engine.begin() as connection:
        connection.execute(insert(SessionRow), row)
    with pytest.raises(exc.IntegrityError) as caught, engine.begin() as connection:
        connection.execute(insert(SessionRow), row)
    assert "a private claim" not in f"{caught.value}"
