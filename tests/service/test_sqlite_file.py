"""The SQLite file contains all conversations, so only the service's user may read it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatkit.backends.selfhosted.database.engine import open_database
from tests.support.chat import Caller
from tests.support.service import Service


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def default_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("default_umask")
def test_new_files_are_readable_by_their_user_only(tmp_path: Path) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/new/chatkit.db") as service:
        Caller(service.url).create("progress")
        files = sorted((tmp_path / "new").iterdir())
        assert [path.name for path in files] == ["chatkit.db", "chatkit.db-shm", "chatkit.db-wal"]
        assert [mode(path) for path in files] == [0o600] * 3


@pytest.mark.usefixtures("default_umask")
@pytest.mark.parametrize("allowed", [0o644, 0o640, 0o600, 0o604])
def test_existing_file_keeps_its_mode(tmp_path: Path, allowed: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "chatkit.db"
    open_database(f"sqlite:///{path}").dispose()
    path.chmod(allowed)
    with caplog.at_level(logging.WARNING, "chatkit.backends.selfhosted.database.engine"):
        open_database(f"sqlite:///{path}").dispose()
    assert mode(path) == allowed
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "chatkit.backends.selfhosted.database.engine"
    ]
    assert len(warnings) == (1 if allowed & 0o004 else 0)
    assert all("chmod 600" in text and str(tmp_path) not in text for text in warnings)
