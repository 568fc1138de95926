"""Forks processes from ones that have already done what takes seconds of processor time, such as importing OpenAI's packages.

A fork server runs the functions that it is sent, each in a process of its own.
"""

from __future__ import annotations

import functools
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

MAX_MESSAGE = 256 * 1024  # a function and its arguments
INTEGER = 8  # bytes of a process id or an exit code


class ForkedProcess:
    """A process with the part of ``subprocess.Popen``'s interface that the tests use. It is killed when this process ends.

    Args:
        server: the address of a fork server.
        function: what it runs.
        arguments: for ``function``.
        files: its standard input, output and error.
    """

    def __init__(self, server: str, function: Callable[..., Any], *arguments: Any, files: Sequence[Any]) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        socket.send_fds(self._connection, [pickle.dumps((function, arguments))], [file.fileno() for file in files])
        self.pid = int.from_bytes(self._connection.recv(INTEGER))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._wait(timeout)) is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return code

    def send_signal(self, sign: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int.from_bytes(self._connection.recv(INTEGER), signed=True)
        return self.returncode


def run_gunicorn(command: list[str], env: dict[str, str]) -> None:
    """Behave like a gunicorn that was started with this command line and environment, in a session of its own."""
    os.setsid()
    if max_files := env.get("TEST_MAX_FILES"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(max_files), int(max_files)))
    python, option, package, *arguments = command
    assert (option, package) == ("-m", "chatkit"), command
    _become(python, arguments, env)
    from chatkit.__main__ import main

    main()


def _become(program: str, arguments: list[str], env: dict[str, str]) -> None:
    sys.argv = [program, *arguments]
    os.environ.clear()
    os.environ.update(env)
    time.tzset()


class ForkedCommand(ForkedProcess):
    """A process whose output is read through pipes, unless ``output`` and ``errors`` are given."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, output: Any = None, errors: Any = None) -> None:
        self.stdout: Any
        self.stderr: Any
        with ExitStack() as written:
            self.stdout, output = (None, output) if output else _pipe(written)
            self.stderr, errors = (None, errors) if errors else _pipe(written)
            nothing = written.enter_context(Path(os.devnull).open())
            super().__init__(service_server(), function, *arguments, files=[nothing, output, errors])

    def communicate(self, timeout: float) -> list[bytes]:
        """Wait for the end, and return what was written to the pipes."""
        with ThreadPoolExecutor(2) as pool:
            written = list(pool.map(lambda pipe: pipe.read() if pipe else b"", (self.stdout, self.stderr)))
        self.wait(timeout)
        return written


def _pipe(written: ExitStack) -> tuple[Any, Any]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), written.enter_context(os.fdopen(writing, "wb"))


def run_flask(arguments: list[str], env: dict[str, str]) -> None:
    """Behave like ``flask`` with these arguments and this environment."""
    _become("flask", arguments, env)
    # Python's own were made for the files of the fork server.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    from flask.cli import main

    main()


def listen() -> socket.socket:
    """Return the socket of a fork server to start. Processes can connect before it is running."""
    # pytest's own folder has a path that is too long for a socket.
    folder = tempfile.TemporaryDirectory(prefix="chatkit-")
    keep_until_exit(folder)
    return socket.create_server(str(Path(folder.name) / "forks"), family=socket.AF_UNIX)


_kept: list[Any] = []
keep_until_exit = _kept.append


@functools.cache
def service_server() -> str:
    """Return the address of a fork server that has imported the service. Start it, unless this process descends from one."""
    with listen() as listener:
        address: str = listener.getsockname()
        code = f"from tests.support import forks; forks._serve_services({address!r})"
        keep_until_exit(subprocess.Popen([sys.executable, "-c", code], stdin=listener.fileno()))
    return address


def _serve_services(address: str) -> None:
    from tests.support import preloaded  # noqa: F401

    global service_server  # noqa: PLW0603
    service_server = functools.cache(lambda: address)
    serve()


def serve() -> None:
    """Be a fork server on the listening socket that is standard input, until the parent process ends."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to the whole process group, and for the parent
        signal.signal(sign, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes supervisors that have ended
    parent = os.getppid()
    listener = socket.socket(fileno=os.dup(0))
    while os.getppid() == parent:
        if select.select([listener], [], [], 1)[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _supervise(connection)
                os._exit(0)
            connection.close()


def _supervise(connection: socket.socket) -> None:
    """Fork the process, send its id and later its exit code. Kill it if the connection is closed."""
    message, files, *_ = socket.recv_fds(connection, MAX_MESSAGE, 3)
    child_ended, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    process = os.fork()
    if process == 0:
        signal.set_wakeup_fd(-1)
        for sign in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sign, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files):
            os.dup2(file, number)
        for unused in (*files, connection.fileno(), child_ended.fileno(), wakeup.fileno()):
            os.close(unused)
        _run(*pickle.loads(message))
    connection.sendall(process.to_bytes(INTEGER))
    if child_ended not in select.select([connection, child_ended], [], [])[0]:
        own_session = os.getsid(process) == process
        (os.killpg if own_session else os.kill)(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with suppress(BrokenPipeError):
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(INTEGER, signed=True))


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    code = 1
    try:
        function(*arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # noqa: BLE001  as a Python program ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
