"""Standard output, the progress bar of the commands that export, and what an operator may type."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


class Utf8(click.ParamType[str]):
    """A text that the database can store."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("is not encoded in UTF-8", param, ctx)
        return value


@contextmanager
def checked_output() -> Iterator[None]:
    """Escape what standard output can't encode, and end the command with one sentence if it can't be written."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader has what it wants
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter, which flushes it once more
        raise click.ClickException(f"The output can't be written: {error.strerror}.") from None


def utf8_stdout() -> codecs.StreamWriter:
    """Return standard output with UTF-8, whatever the locale is."""
    return codecs.getwriter("utf-8")(sys.stdout.buffer)


def progress_options() -> dict[str, Any]:
    """Return the options of a progress bar on the terminal, hidden if there is none or the output itself is shown there."""
    return {"file": sys.stderr, "hidden": sys.stdout.isatty() or not sys.stderr.isatty()}
