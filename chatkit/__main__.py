"""Runs gunicorn after checking the settings: ``python -m chatkit app:app``, as in the ``Procfile``.

gunicorn reads ``WEB_CONCURRENCY`` at import, and fails with a traceback if it is blank or not a number.
"""

from __future__ import annotations

import errno
import os
import socket

from chatkit.settings import SettingsError, load


def main() -> None:
    """Run gunicorn with the arguments of this process."""
    try:
        settings = load()
    except SettingsError as error:
        raise SystemExit(f"chatkit: cannot start. {error}") from None
    if settings.development and not _is_free(settings.port):
        another = settings.port + 1
        raise SystemExit(f"chatkit: cannot start. Port {settings.port} is in use. Use another: `PORT={another} make run`.")
    os.environ["WEB_CONCURRENCY"] = str(settings.workers)
    from gunicorn.app.wsgiapp import run

    run(prog="gunicorn")


def _is_free(port: int) -> bool:
    """Whether ``port`` of this machine is free. gunicorn would try for five seconds, and log each attempt twice."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
        return True


if __name__ == "__main__":
    main()
