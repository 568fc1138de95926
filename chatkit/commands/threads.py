"""``flask --app app threads``: shows a user's conversations."""

from __future__ import annotations

import click

from chatkit.commands.database import open_user_data, require_user
from chatkit.commands.output import Utf8
from chatkit.settings import Settings
from chatkit.web.logs import escape


def command(settings: Settings) -> click.Command:
    """Return the commands, for the service with these settings."""

    @click.group()
    def threads() -> None:
        """Show the conversations of a user.

        USER is anonymous: and the visitor's UUID, or user: and the identifier in the user's token.
        """

    @threads.command("list", short_help="List the threads of USER, oldest first.")
    @click.argument("user", type=Utf8())
    def list_(user: str) -> None:
        """List the threads of USER, oldest first: id, times of creation and last use, number of items, title."""
        with open_user_data(settings) as data:
            require_user(data, user)
            for thread in data.threads(user):
                click.echo(
                    f"{thread.id}  {thread.created_at}  {thread.used_at}  {thread.items:5}  {escape(thread.title or '')}"
                )

    @threads.command()
    @click.argument("user", type=Utf8())
    @click.argument("thread", type=Utf8())
    def show(user: str, thread: str) -> None:
        """Print the items of THREAD of USER."""
        from chatkit.backends.selfhosted.user_data import text_of

        with open_user_data(settings) as data:
            if all(known.id != thread for known in data.threads(user)):
                raise click.ClickException(f"{user!r} has no thread {thread!r}.")
            for item in data.items(user, thread):
                rated = f"  ({item['feedback']})" if "feedback" in item else ""
                click.echo(f"{item['created_at']}  {item['type']}{rated}")
                for line in text_of(item).split("\n"):
                    click.echo(f"    {escape(line)}")

    return threads
