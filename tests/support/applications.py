"""Applications in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from chatkit.web.asgi import AsgiFlask
from tests.support.chat import Caller

MakeApp = Callable[..., AsgiFlask]
Start = Callable[..., Caller]


class _Server(uvicorn.Server):
    async def main_loop(self) -> None:
        """Look ten times as often as uvicorn whether to stop."""
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)


@contextmanager
def served(app: AsgiFlask) -> Iterator[str]:
    """Serve ``app`` with uvicorn in this process, and yield its address. Tests can patch it, unlike a process of gunicorn."""
    config = uvicorn.Config(app, interface="asgi3", lifespan="on", log_config=None, proxy_headers=False, ws="none")
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
