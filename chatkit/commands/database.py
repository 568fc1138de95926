"""The database of the commands.

The modules of the self-hosted backend are imported when a command runs, because a hosted service does without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from chatkit.commands.output import checked_output
from chatkit.settings import Settings, SettingsError

if TYPE_CHECKING:
    from chatkit.backends.selfhosted.imports import ImportStore
    from chatkit.backends.selfhosted.user_data import UserData


@contextmanager
def database_errors(advice: str = "") -> Iterator[None]:
    """End the command with one sentence, and ``advice``, if the database can't be used."""
    from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, describe

    try:
        yield
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    except UNAVAILABLE as error:
        raise click.ClickException(f"DATABASE_URL: {describe(error)}.{advice}") from None


@contextmanager
def open_user_data(settings: Settings) -> Iterator[UserData]:
    """Open the database for a command about users' data, without time limits: it may have to read everything."""
    from chatkit.backends.selfhosted.database.engine import make_engine, open_database
    from chatkit.backends.selfhosted.user_data import UserData

    with database_errors(), checked_output():
        open_database(settings.database_url)  # upgrades the schema
        with make_engine(settings.database_url).connect() as connection:
            yield UserData(connection)


def require_user(data: UserData, user: str) -> dict[str, int]:
    """Return what is stored about ``user``, in numbers; end the command if that is nothing."""
    counts = data.counts(user)
    if not any(counts.values()):
        raise click.ClickException(f"Nothing is stored about {user!r}. Users begin with anonymous: or user:.")
    return counts


def open_import_store(settings: Settings) -> ImportStore:
    from chatkit.backends.selfhosted.database.engine import open_database
    from chatkit.backends.selfhosted.imports import ImportStore

    return ImportStore(open_database(settings.database_url, connections=1))
