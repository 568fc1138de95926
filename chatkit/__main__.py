"""gunicorn, with the settings checked before it is imported: ``python -m chatkit app:app``, the line of the ``Procfile``.

gunicorn reads ``WEB_CONCURRENCY`` while it is imported, and fails with a traceback where that is blank or no number.
"""

from __future__ import annotations

import os

from chatkit.settings import SettingsError, load


def main() -> None:
    """Run gunicorn with this process's arguments."""
    try:
        settings = load()
    except SettingsError as error:
        raise SystemExit(f"chatkit: cannot start. {error}") from None
    os.environ["WEB_CONCURRENCY"] = str(settings.workers)
    from gunicorn.app.wsgiapp import run

    run(prog="gunicorn")


if __name__ == "__main__":
    main()
