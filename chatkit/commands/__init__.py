"""Commands for the operator: ``flask --app app --help``."""

from __future__ import annotations

from importlib.util import find_spec

from flask import Flask

from chatkit.commands import feedback, import_hosted, threads, users
from chatkit.settings import Settings


def register(app: Flask, settings: Settings) -> None:
    """Add the commands to ``flask``; the import only as long as ``backends/hosted`` exists."""
    for module in (users, threads, feedback):
        app.cli.add_command(module.command(settings))
    if find_spec("chatkit.backends.hosted"):
        app.cli.add_command(import_hosted.command(settings))
