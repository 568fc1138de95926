"""Standard output and the progress bar of the commands that export."""

from __future__ import annotations

import codecs
import sys
from typing import Any


def utf8_stdout() -> codecs.StreamWriter:
    """Return standard output with UTF-8, whatever the locale is."""
    return codecs.getwriter("utf-8")(sys.stdout.buffer)


def progress_options() -> dict[str, Any]:
    """Return the options of a progress bar on the terminal, hidden if there is none or the output itself is shown there."""
    return {"file": sys.stderr, "hidden": sys.stdout.isatty() or not sys.stderr.isatty()}
