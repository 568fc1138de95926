"""The commands in the documentation exist, with these arguments and options."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from flask.testing import FlaskClient

from tests.support.service import PROJECT

PAGES = [(PROJECT / "docs" / name).read_text() for name in ("commands.md", "moving-from-agent-builder.md")]
SHOWN = [line for page in PAGES for line in re.findall(r"^\$ .*?flask --app app ([^>\n]*)", page, re.MULTILINE)]


@pytest.mark.parametrize("line", SHOWN)
def test_command_that_is_shown(client: FlaskClient, line: str) -> None:
    command: click.Command = client.application.cli
    words = shlex.split(line)
    with click.Context(command) as context:
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found
            command = found
        command.make_context(command.name, words)  # parses the arguments


def test_every_command_is_shown(client: FlaskClient) -> None:
    ours = ("import-hosted", "users", "threads", "feedback")
    names = set()
    for name in ours:
        command = client.application.cli.commands[name]
        names |= {f"{name} {sub}" for sub in command.commands} if isinstance(command, click.Group) else {name}
    assert {" ".join(line.split()[: 1 if line.startswith("import") else 2]) for line in SHOWN} == names


def test_options_that_the_text_names_exist(client: FlaskClient) -> None:
    named = set(re.findall(r"`(--[a-z-]+)", PAGES[0])) | set(re.findall(r"`[^`\n]* (--[a-z-]+)", PAGES[0]))
    assert {"--user-format", "--user", "--yes"} <= named
    known = {"--app", "--help"}
    for command in client.application.cli.commands.values():
        for one in command.commands.values() if isinstance(command, click.Group) else [command]:
            known |= {option for parameter in one.params for option in parameter.opts}
    assert named <= known


def test_copying_the_conversations_is_the_first_step() -> None:
    assert PAGES[1].index("import-hosted") < PAGES[1].index("## 2. ")
