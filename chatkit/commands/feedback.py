"""``flask --app app feedback``: exports the users' ratings of replies."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import unicodedata

import click

from chatkit.commands.database import open_user_data
from chatkit.commands.output import progress_options, utf8_stdout
from chatkit.settings import Settings
from chatkit.web.logs import escape

FORMULA = "=+-@"  # spreadsheets run a cell that begins with one of these
IGNORED = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of characters that they may skip
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line feeds; a terminal would obey them


def command(settings: Settings) -> click.Command:
    """Return the commands, for the service with these settings."""

    @click.group()
    def feedback() -> None:
        """Export users' ratings of replies."""

    @feedback.command(short_help="Write each rated reply to standard output.")
    @click.option("--format", "format_", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True)
    def export(format_: str) -> None:
        """Write each rated reply, with its time, question and rating, to standard output."""
        from chatkit.backends.selfhosted.user_data import Feedback

        output = utf8_stdout()
        with (
            open_user_data(settings) as data,
            click.progressbar(data.feedback(), label="Replies", show_pos=True, **progress_options()) as progress,
        ):
            if format_ == "csv":
                writer = csv.writer(output)
                writer.writerow([column.name for column in dataclasses.fields(Feedback)])
                writer.writerows(map(_cell, dataclasses.astuple(row)) for row in progress)
            else:
                for row in progress:
                    output.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
            output.flush()

    return feedback


def _cell(text: str) -> str:
    text = CONTROL.sub(lambda found: escape(found[0]), text)
    first = next((char for char in text if unicodedata.category(char) not in IGNORED), "")
    runs = text.startswith(("\t", "\n")) or unicodedata.normalize("NFKC", first).startswith(tuple(FORMULA))
    return f"'{text}" if runs else text
