"""``flask --app app import-hosted``: copies the conversations of hosted sessions from OpenAI.

Remove it together with the hosted backend.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from chatkit.commands.database import database_errors, open_import_store
from chatkit.commands.output import Utf8, checked_output
from chatkit.settings import Settings

if TYPE_CHECKING:
    from chatkit.backends.hosted.threads_api import ThreadsApi
    from chatkit.backends.selfhosted.imports import ImportStore

MAX_USER = 512  # characters; the database's and OpenAI's limit
MAX_FAILURES_IN_A_ROW = 3  # threads at which OpenAI was unavailable; the next would fail as well
THREADS_PER_LINE = 100  # of the progress, where it is not a terminal
REPEAT = "Run the command again to continue; what has been read is stored."

Warn = Callable[[str], None]


@dataclass
class Report:
    """What an import has read and stored, in numbers."""

    threads: int = 0
    items: int = 0
    created: int = 0
    continued: int = 0
    deleted: int = 0
    new_items: int = 0
    changed_items: int = 0
    losses: Counter[str] = field(default_factory=Counter)
    """The number of items that were not converted completely, by what is missing."""
    skipped: Counter[str] = field(default_factory=Counter)
    """The number of threads that were not imported, by the reason."""


def import_threads(
    api: ThreadsApi, store: ImportStore | None, report: Report, *, user: str | None, user_format: str | None, warn: Warn
) -> Iterator[None]:
    """Read all threads, or those of ``user``, and store them. Yield after each; at no time is there more than one in memory.

    Args:
        api: the reader.
        store: where to store them; ``None`` only reads and converts.
        report: is updated.
        user: the identifier that OpenAI has.
        user_format: the ``User.id`` of users whose identifier is not one of this service, with ``{}`` for it.
        warn: called with a line about each thread that is not imported and each item that is not converted completely.

    Raises:
        ReadFailed: OpenAI's conversations can't be read.
    """
    from chatkit.backends.hosted.threads_api import AccessDenied, ReadFailed, Unavailable

    failures = 0
    for resource in api.threads(user):
        report.threads += 1
        try:
            _import_thread(api, store, report, resource, user_format, warn)
            failures = 0
        except _Skipped as skipped:
            report.skipped[skipped.reason] += 1
            warn(f"{skipped.thread}: not imported: {skipped.reason}")
        except AccessDenied:
            raise
        except ReadFailed as error:
            # OpenAI may also refuse a single thread, such as a deleted one.
            failures = failures + 1 if isinstance(error, Unavailable) else 0
            if failures == MAX_FAILURES_IN_A_ROW:
                raise
            report.skipped["its items can't be read"] += 1
            warn(f"thread {resource['id']}: not imported: its items can't be read: {error}")
        yield


class _Skipped(Exception):
    def __init__(self, thread: str, reason: str) -> None:
        self.thread = thread
        self.reason = reason


def _import_thread(
    api: ThreadsApi, store: ImportStore | None, report: Report, resource: Any, user_format: str | None, warn: Warn
) -> None:
    from chatkit.backends.hosted.conversion import convert_item, convert_thread
    from chatkit.backends.selfhosted.imports import ImportedItem

    try:
        thread = convert_thread(resource)
    except ValueError as error:
        raise _Skipped("a thread", str(error)) from None
    owner = _owner(f"thread {thread.id}", resource.get("user"), user_format)
    items: dict[str, ImportedItem] = {}
    previous = thread.created_at
    for item_resource in api.items(thread.id):
        converted = convert_item(item_resource, thread.id, previous, items)
        previous = converted.item.created_at
        items[converted.item.id] = ImportedItem(converted.item, converted.original)
        if converted.losses:
            report.losses.update(converted.losses)
            warn(f"thread {thread.id}, item {converted.item.id}: not converted: {', '.join(converted.losses)}")
    report.items += len(items)
    if store is None:
        return
    outcome = store.save(owner, thread, list(items.values()))
    report.created += outcome.created
    report.deleted += outcome.deleted
    report.continued += not outcome.created and bool(outcome.new_items or outcome.changed_items)
    report.new_items += outcome.new_items
    report.changed_items += outcome.changed_items


def _owner(thread: str, user: Any, user_format: str | None) -> str:
    """Return the ``User.id`` for the user that OpenAI has."""
    if not isinstance(user, str) or not user or "\0" in user:
        raise _Skipped(thread, "it has no valid user")
    if not re.match(r"(anonymous|user):.", user, re.DOTALL):
        if user_format is None:
            raise _Skipped(thread, "its user is not one of this service; --user-format maps other identifiers")
        user = user_format.replace("{}", user)
    if len(user) > MAX_USER:
        raise _Skipped(thread, f"its user has more than {MAX_USER} characters")
    return str(user)


def _check_format(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(user|anonymous):[^{}]*\{\}[^{}]*", value):
        raise click.BadParameter("must begin with user: or anonymous: and contain {} once, as in user:{}")
    return value


def _check_user(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("must not be empty; without it, all conversations are imported")
    return value


def command(settings: Settings) -> click.Command:
    """Return the command, for the service with these settings."""

    @click.command("import-hosted", short_help="Copy the hosted conversations from OpenAI.")
    @click.option(
        "--user", type=Utf8(), callback=_check_user, help="Only this user's conversations; the identifier that OpenAI has."
    )
    @click.option(
        "--user-format",
        type=Utf8(),
        callback=_check_format,
        help="Maps the identifiers of other deployments, which do not begin with anonymous: or user:, as in 'user:{}'.",
    )
    @click.option("--dry-run", is_flag=True, help="Read and convert everything, but store nothing.")
    def import_hosted(user: str | None, user_format: str | None, dry_run: bool) -> None:
        """Copy the conversations of hosted sessions from OpenAI into the database.

        It can be interrupted and repeated: nothing is stored twice, and a later run adds what is new.
        """
        from chatkit.backends.hosted.threads_api import ReadFailed, ThreadsApi

        if not settings.openai_api_key:
            raise click.ClickException("OPENAI_API_KEY is not set; the conversations are read with it.")
        if not (settings.database_url_given or settings.development or dry_run):
            raise click.ClickException("DATABASE_URL is not set; it is the database in which the conversations are stored.")
        report = Report()
        with checked_output(), nullcontext() if dry_run else database_errors(f" {REPEAT}"):
            store = None if dry_run else open_import_store(settings)
            steps = import_threads(
                ThreadsApi(settings),
                store,
                report,
                user=user,
                user_format=user_format,
                warn=lambda line: click.echo(line, err=True),
            )
            try:
                _show_progress(steps, report)
            except ReadFailed as error:
                raise click.ClickException(f"{error}. {REPEAT}") from None
            except KeyboardInterrupt:
                click.echo(f"\nInterrupted after {report.threads} threads. {REPEAT}", err=True)
                raise
            finally:
                _print_report(report, store)
            complete = store is None or _check(store)
        if report.skipped or not complete:
            raise click.exceptions.Exit(1)

    return import_hosted


def _show_progress(steps: Iterator[None], report: Report) -> None:
    terminal = sys.stderr.isatty()
    with click.progressbar(steps, label="Threads", show_pos=True, file=sys.stderr, hidden=not terminal) as progress:
        for _ in progress:
            if not terminal and report.threads % THREADS_PER_LINE == 0:
                click.echo(f"{report.threads} threads with {report.items} items read", err=True)


def _print_report(report: Report, store: ImportStore | None) -> None:
    click.echo(f"Read: {report.threads} threads with {report.items} items.")
    if store is None:
        click.echo("Nothing was stored, because of --dry-run.")
    else:
        click.echo(f"Database: {store.database}.")
        click.echo(
            f"Stored: {report.created} new threads, {report.continued} with changes, {report.new_items} new items, "
            f"{report.changed_items} changed items."
        )
        if report.deleted:
            click.echo(f"Not stored again: {report.deleted} threads that were deleted here.")
    for loss, number in report.losses.most_common():
        click.echo(f"Not converted, but kept as OpenAI sent it: {loss} ({number} items).")
    for reason, number in report.skipped.most_common():
        click.echo(f"Not imported: {number} threads, because: {reason}.")


def _check(store: ImportStore) -> bool:
    """Compare the database with what was read. Print the result and return whether everything is there."""
    threads = items = incomplete = 0
    for thread_id, stored, expected in store.check():
        threads += 1
        items += stored
        if stored != expected:
            incomplete += 1
            click.echo(f"thread {thread_id}: {stored} of {expected} items are in the database", err=True)
    outcome = f"{incomplete} threads are incomplete" if incomplete else "all are complete"
    click.echo(
        f"Checked: the database has {threads} imported threads with {items} items that were not used here since; {outcome}."
    )
    return not incomplete
