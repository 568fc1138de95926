"""A database that can't be used ends a command with one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.database.engine import open_database
from tests.support.applications import MakeApp
from tests.support.commands import run


@pytest.mark.parametrize("command", [["users", "export", "user:a"], ["threads", "list", "user:a"], ["feedback", "export"]])
def test_database_that_fails(make_app: MakeApp, tmp_path: Any, command: list[str]) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    app = make_app(DATABASE_URL=address)
    open_database(address)
    with create_engine(address).begin() as connection:
        connection.execute(text("DROP TABLE chat_items"))
    result = run(app, *command)
    assert result.exit_code == 1
    assert result.stderr == "Error: DATABASE_URL: the tables are missing.\n"
