"""Transactions on other threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from chatkit.backends.selfhosted.chat.transactions import Transactions
from chatkit.backends.selfhosted.database.engine import open_database
from tests.support.store import run


@pytest.mark.parametrize("cancelled_after", [0.3, 0.9], ids=["before the time limit", "after the time limit"])
def test_what_a_cancelled_task_has_begun_is_undone(database: str, cancelled_after: float) -> None:
    transactions, done = Transactions(open_database(database)), []

    def noting(name: str, seconds: float = 0) -> Callable[[Connection], None]:
        def work(_connection: Connection) -> None:
            time.sleep(seconds)
            done.append(name)

        return work

    async def cancel() -> None:
        task = asyncio.create_task(transactions.run(noting("work", 1.2), seconds=0.6, undo=noting("undo")))
        await asyncio.sleep(cancelled_after)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        async with asyncio.timeout(5):
            while done != ["work", "undo"]:
                await asyncio.sleep(0.05)

    run(cancel())
