"""Shared fixtures: applications with given settings, a fake OpenAI, databases, browsers, and a record of the logs."""

from __future__ import annotations

import functools
import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from playwright.sync_api import Browser
from sqlalchemy import URL, make_url

from chatkit import create_app
from chatkit.backends.selfhosted.database import engine
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.settings import Settings
from chatkit.web.asgi import AsgiFlask
from tests.support import forked_workers, programs, scheduling, service
from tests.support.applications import MakeApp, Start, served
from tests.support.browser import Visitor, chromium
from tests.support.chat import Caller
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI
from tests.support.leaks import Recorder, leaks
from tests.support.postgres import new_postgres_database, postgres_server

gc.set_threshold(50_000, 20, 100)  # the default ones take a fifth of the tests' processor time


@pytest.fixture(scope="session", autouse=True)
def recorder() -> Iterator[Recorder]:
    handler = Recorder()
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    yield handler
    logging.getLogger().removeHandler(handler)
    # The logs of this process and of the services that it started.
    found = leaks("\n".join([*handler.lines, *service.output]))
    assert not found, f"{len(found)} secrets were logged, the first here: {found[0]}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="count a skipped test as failed")
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out slow tests, and run on SQLite only what otherwise runs on PostgreSQL as well",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.passed:
        report.sections.clear()  # nobody reads the logs of passed tests, and pytest-xdist would send them
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {report.longrepr}"
    elif isinstance(report.longrepr, tuple) and programs.MISSING in report.longrepr[2]:
        report.longrepr = (programs.__file__, 0, report.longrepr[2])  # one line in the summary, not one for each test
    return report


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """More than there are processors, because many tests wait, but not so many that those with time limits fail."""
    return (6 if config.getoption("--quick") else 4) * (os.cpu_count() or 1)


def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    forked_workers.install(tuple(config.args))
    _databases_of_run(config)  # while the tests are collected


def pytest_configure_node(node: Any) -> None:
    """Let all processes of pytest-xdist share one PostgreSQL server, and the databases that tests copy."""
    node.workerinput.update(_databases_of_run(node.config))


@functools.cache
def _databases_of_run(config: pytest.Config) -> dict[str, str]:
    running = ExitStack()
    config.add_cleanup(running.close)
    postgres = running.enter_context(postgres_server())
    return {
        "postgres": postgres,
        "migrated_postgres": _migrated_postgres(postgres),
        "migrated_sqlite": _migrated_sqlite(Path(running.enter_context(tempfile.TemporaryDirectory()))),
    }


def _migrated_postgres(server: str) -> str:
    address = new_postgres_database(server)
    open_database(address).dispose()
    return address


def _migrated_sqlite(folder: Path) -> str:
    path = folder / "chatkit.db"
    open_database(f"sqlite:///{path}").dispose()
    return str(path)


def _shared(request: pytest.FixtureRequest) -> Any:
    """Return what the processes of pytest-xdist share for the requested fixture, or None where there are none."""
    return getattr(request.config, "workerinput", {}).get(request.fixturename)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        _leave_out(config, items)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = scheduling.arrange(items)


def _leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    ids = {item.nodeid for item in items}
    left_out = {
        item
        for item in items
        if item.get_closest_marker("slow")
        or ("postgresql" in item.nodeid and item.nodeid.replace("postgresql", "sqlite") in ids)
    }
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> scheduling.Scheduling:
    return scheduling.Scheduling(config, log)


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as running:
        yield running


@pytest.fixture(scope="module")
def shared_openai() -> Iterator[FakeOpenAI]:
    """As ``fake_openai``, for all tests of a module."""
    with FakeOpenAI() as running:
        yield running


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a real PostgreSQL server. ``database`` creates an empty database on it for each test."""
    if shared := _shared(request):
        yield shared
    else:
        with postgres_server() as address:
            yield address


@pytest.fixture(scope="session")
def migrated_sqlite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a SQLite file with the schema. The tests copy it, because migrations take longer than most of them."""
    return _shared(request) or _migrated_sqlite(tmp_path_factory.mktemp("migrated"))


@pytest.fixture(scope="session")
def migrated_postgres(request: pytest.FixtureRequest, postgres: str) -> str:
    """As ``migrated_sqlite``: the address of a PostgreSQL database."""
    return _shared(request) or _migrated_postgres(postgres)


@pytest.fixture(scope="session", autouse=True)
def migrated_once() -> Iterator[set[URL]]:
    """The addresses of the databases with the schema. Opening one skips the migrations, which take long."""
    migrated: set[URL] = set()
    migrate = engine._migrate_with_retry
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "_migrate_with_retry", lambda url: url in migrated or migrate(url))
        yield migrated


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The ``DATABASE_URL`` of a database without tables, once on SQLite and once on PostgreSQL."""
    return (
        f"sqlite:///{tmp_path}/empty.db"
        if request.param == "sqlite"
        else new_postgres_database(request.getfixturevalue("postgres"))
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ``DATABASE_URL`` of a database with empty tables, once on SQLite and once on PostgreSQL."""
    return _new_database(request, tmp_path_factory)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As ``database``, for all tests of a module."""
    return _new_database(request, tmp_path_factory)


def _new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        migrated = request.getfixturevalue("migrated_sqlite")
        address = f"sqlite:///{shutil.copy(migrated, tmp_path_factory.mktemp('db'))}"
    else:
        address = new_postgres_database(request.getfixturevalue("postgres"), request.getfixturevalue("migrated_postgres"))
    request.getfixturevalue("migrated_once").add(make_url(address))
    return address


# Not per session: while Playwright is open, its event loop counts as running, and asyncio.run() refuses to start.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """A visitor with their own browser context."""
    with browser.new_context() as context:
        yield Visitor(context)


@pytest.fixture
def make_app(fake_openai: FakeOpenAI, tmp_path: Path, migrated_sqlite: str, migrated_once: set[URL]) -> MakeApp:
    """Make an application, by default with the hosted backend and complete settings."""
    file = tmp_path / "chatkit.db"

    def make(**variables: str) -> AsgiFlask:
        if not file.exists():
            shutil.copy(migrated_sqlite, file)
            migrated_once.add(make_url(f"sqlite:///{file}"))
        hosted = {"OPENAI_API_KEY": API_KEY, "CHATKIT_WORKFLOW_ID": WORKFLOW_ID, "CHATKIT_API_BASE": fake_openai.url}
        defaults = {"SECRET_KEY": service.SECRET_KEY, "DATABASE_URL": f"sqlite:///{file}"}
        return create_app(Settings.load({**defaults, **hosted, "RATE_LIMIT": "1000000", **variables}))

    return make


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """A client of the hosted backend."""
    return make_app().test_client()


@pytest.fixture
def selfhosted(make_app: MakeApp) -> FlaskClient:
    """A client of the self-hosted backend."""
    return make_app(CHATKIT_BACKEND="selfhosted").test_client()


@pytest.fixture
def start(make_app: MakeApp) -> Iterator[Start]:
    """Serve an agent and return a caller. It runs in this process, because starting gunicorn takes seconds."""
    with ExitStack() as running:

        def start(agent: str = "", **variables: str) -> Caller:
            named = f"tests.support.agents_under_test:{agent}" if agent and ":" not in agent else agent
            app = make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=named, **variables)
            return Caller(running.enter_context(served(app)))

        yield start
