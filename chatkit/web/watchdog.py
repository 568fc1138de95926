"""Logs what blocks the event loop. A blocked loop can't do this itself."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

BEAT_SECONDS = 0.5
BLOCKED_SECONDS = 2.0
"""gunicorn's ``timeout`` replaces a worker whose loop stays blocked."""

log = logging.getLogger(__name__)


async def watch_loop() -> None:
    """Watch the running event loop, until cancelled. What blocks it is logged once, with its stack."""
    watchdog = _Watchdog(threading.get_ident())
    threading.Thread(target=watchdog.watch, name="watchdog", daemon=True).start()
    try:
        while True:
            watchdog.beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
    finally:
        watchdog.stopped.set()


class _Watchdog:
    def __init__(self, watched: int) -> None:
        self._watched = watched  # the id of the loop's thread
        self.beat = time.monotonic()
        self.stopped = threading.Event()

    def watch(self) -> None:
        blocked = False
        waited_since = time.monotonic()
        while not self.stopped.wait(BEAT_SECONDS):
            now = time.monotonic()
            waited, waited_since = now - waited_since, now
            if waited >= BLOCKED_SECONDS:
                continue  # this thread did not run either: the process was frozen
            lag = now - self.beat
            if blocked and lag < BLOCKED_SECONDS:
                blocked = False
                log.warning("the event loop goes on")
            elif not blocked and lag >= BLOCKED_SECONDS and (frame := sys._current_frames().get(self._watched)):
                blocked = True
                stack = "".join(traceback.format_stack(frame))
                log.error("the event loop has been blocked for %.1f s, and nobody is served meanwhile:\n%s", lag, stack)
