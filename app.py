"""Entry point for gunicorn (``Procfile``), and for development with ``make run`` or ``python app.py``."""

import os
import sys

from chatkit import create_app
from chatkit.__main__ import main
from chatkit.settings import SettingsError

if __name__ == "__main__":
    os.environ.setdefault("CHATKIT_ENV", "development")
    sys.argv = ["gunicorn", "app:app"]
    main()
else:
    try:
        app = create_app()
    except SettingsError as error:
        raise SystemExit(f"chatkit: cannot start. {error}") from None
