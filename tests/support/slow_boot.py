"""The service with workers that take a while from their fork until they handle signals."""

from __future__ import annotations

import time

from chatkit.web.worker import Worker

_setup_event_loop = Worker._setup_event_loop


def _slowly(worker: Worker) -> None:
    time.sleep(1)
    _setup_event_loop(worker)


Worker._setup_event_loop = _slowly  # type: ignore[assignment, method-assign]

from app import app  # noqa: E402, F401
