"""A queue of a response's chunks between the task that makes them and the task that sends them, on one event loop."""

from __future__ import annotations

import asyncio

MAX_WAITING_BYTES = 64 * 1024


class Buffer:
    """Chunks of bytes, in order.

    Only ``room`` makes the producer wait. What is made by OpenAI's server is put without waiting, so a producer that is
    cancelled is interrupted within that server, which then keeps what was said so far.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._reader: asyncio.Future[None] | None = None

    def put(self, chunk: bytes) -> None:
        """Add a chunk, at once."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > MAX_WAITING_BYTES:
            self._room.clear()
        self._wake()

    async def room(self) -> None:
        """Wait until the reader has caught up; a slow one does not fill the memory."""
        await self._room.wait()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes; ``error`` is raised in the reader. Only the first call counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    async def take(self, seconds: float) -> bytes | None:
        """All that has come since; nothing (``b""``) after ``seconds`` without any, ``None`` at the end.

        Raises:
            BaseException: with which the producer has ended.
        """
        if not self._chunks and not self._ended:
            loop = asyncio.get_running_loop()
            self._reader = loop.create_future()
            timer = loop.call_later(seconds, self._wake)
            try:
                await self._reader
            finally:
                timer.cancel()
                self._reader = None
        if self._chunks:
            together = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._bytes = 0
            self._room.set()
            return together
        if not self._ended:
            return b""
        if self._error is not None:
            raise self._error
        return None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
