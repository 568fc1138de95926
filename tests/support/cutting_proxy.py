"""A proxy in front of a service, which can cut the connections that go through it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

from tests.support.service import free_port


class CuttingProxy:
    """Passes bytes between its clients and ``port`` of this machine."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = free_port()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections, on both sides."""
        with self._lock:
            cut, self._open = self._open, set()
        for sock in cut:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an orderly end
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with suppress(OSError):
                    service = socket.create_connection(("127.0.0.1", self.target))
                    with self._lock:
                        self._open |= {client, service}
                    for pair in ((client, service), (service, client)):
                        threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            with self._lock:
                self._open.discard(sock)
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()
