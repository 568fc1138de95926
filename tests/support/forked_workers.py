"""The processes of pytest-xdist, forked from one that has collected the tests, which takes 10 s of processor time."""

from __future__ import annotations

import functools
import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from execnet import gateway_io
from execnet.gateway_base import Popen2IO

from tests.support import forks


def install(arguments: tuple[str, ...]) -> None:
    """Let execnet, which starts the processes for pytest-xdist, fork them. ``arguments`` name the tests."""
    gateway_io.create_io = functools.partial(_ForkedIO, _start_server(arguments))  # type: ignore[assignment]


class _ForkedIO(Popen2IO):
    """In place of execnet's ``Popen2IOMaster``."""

    def __init__(self, server: str, _spec: Any, execmodel: Any) -> None:
        (their_input, output), (input_, their_output) = os.pipe(), os.pipe()
        with open(their_input) as stdin, open(their_output, "w") as stdout:  # noqa: PTH123
            self._process = forks.ForkedProcess(server, _work, files=[stdin, stdout, sys.stderr])
        super().__init__(os.fdopen(output, "wb"), os.fdopen(input_, "rb"), execmodel)

    def wait(self) -> int:
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()


def _work() -> None:
    exec(gateway_io.popen_bootstrapline, {"__name__": "__main__"})


def _start_server(arguments: tuple[str, ...]) -> str:
    """Return the address of a fork server that begins to collect the tests. It answers when it has collected them."""
    with forks.listen() as listener, Path(os.devnull).open("w") as discarded:
        forks.keep_until_exit(
            forks.ForkedProcess(forks.service_server(), _serve, arguments, files=[listener, discarded, sys.stderr])
        )
        return str(listener.getsockname())


def _serve(arguments: tuple[str, ...]) -> None:
    gc.unfreeze()  # hypothesis warns of objects that the collector does not see
    pytest.main(["--collect-only", *arguments])
    gc.collect()
    gc.freeze()
    forks.serve()
