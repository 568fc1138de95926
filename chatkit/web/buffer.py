"""A byte buffer between the task that produces a response body and the task that sends it, on one event loop."""

from __future__ import annotations

import asyncio

MAX_WAITING_BYTES = 64 * 1024


class Buffer:
    """Chunks of bytes, in order.

    Only ``room`` waits. It is called within OpenAI's server, so a cancelled producer is interrupted there, and the server saves
    the reply as far as it got.
    """

    interrupted = False
    """Whether the producer was cancelled because the process stops."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._reader: asyncio.Future[None] | None = None
        self.is_detached = False
        """Whether there is no reader any more."""

    def put(self, chunk: bytes) -> None:
        """Add a chunk without blocking."""
        if self.is_detached:
            return
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > MAX_WAITING_BYTES:
            self._room.clear()
        self._wake()

    async def room(self) -> None:
        """Wait while more than ``MAX_WAITING_BYTES`` are unread, so that a slow client can't fill the memory."""
        await self._room.wait()

    def detach(self) -> None:
        """Discard all chunks from now on, because there is no reader left. ``room`` no longer waits."""
        self.is_detached = True
        self._chunks.clear()
        self._room.set()
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Mark the end of the body; ``error`` is raised in the reader. Only the first call counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    async def take(self, seconds: float) -> bytes | None:
        """Return and remove all chunks, joined; ``b""`` if none came within ``seconds``, ``None`` at the end.

        Raises:
            BaseException: the producer's error.
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
            joined = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._bytes = 0
            self._room.set()
            return joined
        if not self._ended:
            return b""
        if self._error is not None:
            raise self._error
        return None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
