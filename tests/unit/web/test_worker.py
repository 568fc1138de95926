"""The times that a client has, on real connections whose clock jumps."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from chatkit.web.worker import Protocol
from tests.support.jumping_loop import run


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: a\r\n"],
    ids=["sends nothing", "sends half a head"],
)
def test_client_that_does_nothing_for_twenty_seconds_is_disconnected(sent: bytes) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        log: Any = logging.getLogger(__name__)
        log.access_log_enabled = False
        closed: asyncio.Future[float] = loop.create_future()
        worker = SimpleNamespace(cfg=Config(), log=log, asgi=None, loop=loop, alive=True, nr=0, nr_conns=0, max_requests=1000)
        worker.connect = lambda _: True
        worker.disconnect = lambda _: closed.set_result(loop.time())
        server = await loop.create_server(lambda: Protocol(worker), "127.0.0.1", 0)
        async with server:
            started = loop.time()
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                client.sendall(sent)
                assert 19.5 < await closed - started < 20.5

    run(check())
