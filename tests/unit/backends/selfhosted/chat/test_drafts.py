"""Drafts: unfinished messages, saved while they are streamed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import datetime

import pytest
from chatkit.types import AssistantMessageContent, AssistantMessageItem
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import drafts as module
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from tests.support import jumping_loop
from tests.support.postgres import new_postgres_database
from tests.support.store import ADA, IMAGE_URLS, new_thread


def unfinished(thread_id: str) -> AssistantMessageItem:
    now = datetime.now()  # noqa: DTZ005
    content = [AssistantMessageContent(text="Hello")]
    return AssistantMessageItem(id="msg_1", thread_id=thread_id, created_at=now, content=content)


def test_draft_is_saved_every_second() -> None:
    saved: list[tuple[float, str]] = []

    class Noting(SqlStore):
        async def save_drafts(self, drafts: Iterable[tuple[ChatContext, AssistantMessageItem]]) -> None:
            [(context, draft)] = drafts
            assert context is ADA
            saved.append((asyncio.get_running_loop().time(), draft.content[0].text))

    async def check() -> None:
        drafts, message = Drafts(Noting(create_engine("sqlite://"), IMAGE_URLS)), unfinished("thr_1")
        started = asyncio.get_running_loop().time()
        for text_ in ("Hello", "Hello Ada", "Hello Ada, how are you?"):
            message.content[0].text = text_
            drafts.schedule(ADA, message)
            while not saved or saved[-1][1] != text_:
                await asyncio.sleep(0.1)
        message.content[0].text = "Finished"
        drafts.schedule(ADA, message)
        await drafts.finish([message.id])
        await asyncio.sleep(2)
        assert [(round(at - started), text_) for at, text_ in saved] == [
            (1, "Hello"),
            (2, "Hello Ada"),
            (3, "Hello Ada, how are you?"),
        ]

    jumping_loop.run(check())


@pytest.mark.parametrize("finished", [False, True])
def test_draft_that_could_not_be_saved_is_saved_later(finished: bool) -> None:
    """The model may be silent by then. A message that is finished meanwhile is not overwritten."""
    saved: list[str] = []
    rounds = 0

    class Failing(SqlStore):
        async def save_drafts(self, drafts: Iterable[tuple[ChatContext, AssistantMessageItem]]) -> None:
            nonlocal rounds
            rounds += 1
            await asyncio.sleep(0.2)
            if rounds == 1:
                raise OSError("the database is locked")
            saved.extend(draft.content[0].text for _, draft in drafts)

    async def check() -> None:
        drafts, message = Drafts(Failing(create_engine("sqlite://"), IMAGE_URLS)), unfinished("thr_1")
        drafts.schedule(ADA, message)
        while not rounds:
            await asyncio.sleep(0.1)
        if finished:
            await drafts.finish([message.id])
        await asyncio.sleep(5)

    jumping_loop.run(check())
    assert saved == ([] if finished else ["Hello"])


def test_message_waits_a_second_for_its_draft_while_the_table_is_locked(
    postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SAVE_INTERVAL_SECONDS", 0.1)
    address = new_postgres_database(postgres)
    store = SqlStore(open_database(address), IMAGE_URLS)
    message = unfinished(new_thread(store))

    async def finish() -> float:
        drafts = Drafts(store)
        drafts.schedule(ADA, message)
        while not drafts._batch:  # until it is being saved
            await asyncio.sleep(0.01)
        started = time.monotonic()
        await drafts.finish([message.id])
        return time.monotonic() - started

    with create_engine(address).begin() as connection, caplog.at_level(logging.WARNING):
        connection.execute(text("LOCK TABLE chat_items IN ACCESS EXCLUSIVE MODE"))
        assert 0.3 < asyncio.run(finish()) < 2.5
    assert "unfinished messages could not be saved" in caplog.text
