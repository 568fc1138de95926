"""Applications in this process, and callers of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from chatkit.web.asgi import AsgiFlask
from tests.support.chat import Caller

MakeApp = Callable[..., AsgiFlask]
Start = Callable[..., Caller]


@contextmanager
def served(app: AsgiFlask) -> Iterator[str]:
    """The address of ``app`` on another ASGI server than gunicorn's, in this process, where tests can reach it."""
    config = uvicorn.Config(app, interface="asgi3", lifespan="on", log_config=None, proxy_headers=False, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
