"""The service with shorter client timeouts, for tests that would otherwise wait for the real ones."""

from __future__ import annotations

import os

from chatkit.web import asgi, worker

worker.HEAD_SECONDS = worker.WRITE_SECONDS = float(os.environ.get("TEST_CLIENT_SECONDS", "20"))
asgi.BODY_IDLE_SECONDS = float(os.environ.get("TEST_CLIENT_SECONDS", "20"))
asgi.BODY_SECONDS = float(os.environ.get("TEST_BODY_SECONDS", "60"))

from app import app  # noqa: E402, F401
