"""Drafts: unfinished messages, saved while they are streamed."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime

import pytest
from chatkit.types import AssistantMessageContent, AssistantMessageItem
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import drafts as module
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from tests.support.postgres import new_postgres_database
from tests.support.store import ADA, new_thread


def test_message_waits_a_second_for_its_draft_while_the_table_is_locked(
    postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SAVE_INTERVAL_SECONDS", 0.1)
    address = new_postgres_database(postgres)
    store = SqlStore(open_database(address))
    message = AssistantMessageItem(
        id="msg_1",
        thread_id=new_thread(store),
        created_at=datetime.now(),  # noqa: DTZ005
        content=[AssistantMessageContent(text="Hello")],
    )

    async def finish() -> float:
        drafts = Drafts(store)
        drafts.schedule(ADA.user, message)
        await asyncio.sleep(0.3)  # until it is being saved
        started = time.monotonic()
        await drafts.finish([message.id])
        return time.monotonic() - started

    with create_engine(address).begin() as connection, caplog.at_level(logging.WARNING):
        connection.execute(text("LOCK TABLE chat_items IN ACCESS EXCLUSIVE MODE"))
        assert 0.3 < asyncio.run(finish()) < 2
    assert "unfinished messages could not be saved" in caplog.text
