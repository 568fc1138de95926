"""Commands for the operator: ``flask --app app --help``."""

from __future__ import annotations

from flask import Flask

from chatkit.commands import feedback, import_hosted, threads, users
from chatkit.settings import Settings


def register(app: Flask, settings: Settings) -> None:
    """Add the commands to ``flask``."""
    for module in (import_hosted, users, threads, feedback):
        app.cli.add_command(module.command(settings))
