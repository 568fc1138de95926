"""The buffer between the task that produces a response and the task that sends it."""

from __future__ import annotations

import asyncio

from chatkit.web.buffer import Buffer


def test_producer_waits_while_more_than_64_kib_are_unread() -> None:
    async def check() -> None:
        buffer = Buffer()
        buffer.put(b"x" * 65_535)
        buffer.put(b"x")
        async with asyncio.timeout(5):
            await buffer.room()
        buffer.put(b"y")
        waiting = asyncio.create_task(buffer.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await buffer.take(5) == b"x" * 65_536 + b"y"
        async with asyncio.timeout(5):
            await waiting

    asyncio.run(check())
