"""``flask --app app users``: exports and deletes what is stored about a user."""

from __future__ import annotations

import click
import redis

from chatkit.commands.database import open_user_data, require_user
from chatkit.commands.output import Utf8, progress_options, utf8_stdout
from chatkit.limits.rate import forget, redis_client
from chatkit.settings import Settings


def command(settings: Settings) -> click.Command:
    """Return the commands, for the service with these settings."""

    @click.group()
    def users() -> None:
        """Export or delete all that is stored about a user.

        USER is anonymous: and the visitor's UUID, or user: and the identifier in the user's token.
        """

    @users.command(short_help="Write all that is stored about USER as JSON.")
    @click.argument("user", type=Utf8())
    def export(user: str) -> None:
        """Write all that is stored about USER to standard output, as JSON."""
        with open_user_data(settings) as data:
            counts = require_user(data, user)
            output = utf8_stdout()
            with click.progressbar(length=counts["items"], label="Items", **progress_options()) as progress:
                for piece, items in data.export(user):
                    output.write(piece)
                    progress.update(items)
            output.flush()

    @users.command(short_help="Delete all that is stored about USER.")
    @click.argument("user", type=Utf8())
    @click.option("--yes", is_flag=True, help="Do not ask.")
    def delete(user: str, yes: bool) -> None:
        """Delete all that is stored about USER: sessions, threads, items with images, feedback, attachments, usage."""
        with open_user_data(settings) as data:
            counts = require_user(data, user)
            summary = ", ".join(
                f"{number} {name.removesuffix('s') if number == 1 else name}" for name, number in counts.items()
            )
            if not yes:
                click.confirm(f"Delete {summary} of {user}? This can't be undone.", abort=True, err=True)
            data.delete(user)
            _forget_in_redis(settings, user)
            click.echo(f"Deleted {summary} of {user}.")

    return users


def _forget_in_redis(settings: Settings, user: str) -> None:
    client = redis_client(settings)
    if client is None:
        return
    try:
        with client:
            forget(client, user)
    except redis.RedisError:
        raise click.ClickException(
            "REDIS_URL: Redis can't be used (is it running?); what it counts of the user expires by itself. "
            "The rest is deleted."
        ) from None
