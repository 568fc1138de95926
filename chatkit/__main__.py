"""Runs gunicorn after checking the settings: ``python -m chatkit app:app``, as in the ``Procfile``.

gunicorn reads ``WEB_CONCURRENCY`` at import, and fails with a traceback if it is blank or not a number.
"""

from __future__ import annotations

import os

from chatkit.settings import SettingsError, load


def main() -> None:
    """Run gunicorn with the arguments of this process."""
    try:
        settings = load()
    except SettingsError as error:
        raise SystemExit(f"chatkit: cannot start. {error}") from None
    os.environ["WEB_CONCURRENCY"] = str(settings.workers)
    from gunicorn.app.wsgiapp import run

    run(prog="gunicorn")


if __name__ == "__main__":
    main()
