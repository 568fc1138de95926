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


def test_buffer_without_a_reader_keeps_nothing() -> None:
    async def check() -> None:
        buffer = Buffer()
        buffer.put(b"x" * 100_000)
        waiting = asyncio.create_task(buffer.room())
        await asyncio.sleep(0)
        buffer.detach()
        async with asyncio.timeout(5):
            await waiting
            for _ in range(100):
                buffer.put(b"x" * 100_000)
                await buffer.room()
        assert buffer._chunks == []
        assert await buffer.take(5) is None

    asyncio.run(check())
