"""Logs what blocks the event loop, from a thread of its own."""

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
    """Watch the running event loop until cancelled. Each time it is blocked, log its stack once."""
    watchdog = _Watchdog(threading.get_ident())
    threading.Thread(target=watchdog.watch, name="watchdog", daemon=True).start()
    try:
        while True:
            watchdog.beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
    finally:
        watchdog.stopped.set()


class _Watchdog:
    def __init__(self, thread_id: int) -> None:
        self._thread_id = thread_id  # of the event loop
        self.beat = time.monotonic()
        self.stopped = threading.Event()

    def watch(self) -> None:
        blocked = False
        woke_at = time.monotonic()
        while not self.stopped.wait(BEAT_SECONDS):
            now = time.monotonic()
            slept, woke_at = now - woke_at, now
            if slept >= BLOCKED_SECONDS:
                continue  # this thread did not run either: the whole process was suspended
            lag = now - self.beat
            if blocked and lag < BLOCKED_SECONDS:
                blocked = False
                log.warning("the event loop is running again")
            elif not blocked and lag >= BLOCKED_SECONDS and (frame := sys._current_frames().get(self._thread_id)):
                blocked = True
                stack = "".join(traceback.format_stack(frame))
                log.error("the event loop has been blocked for %.1f s, and no request is served meanwhile:\n%s", lag, stack)
