"""The operator's commands, in this process."""

from __future__ import annotations

from click.testing import Result

from chatkit.web.asgi import AsgiFlask


def run(app: AsgiFlask, *arguments: str, answer: str | None = None) -> Result:
    result = app.test_cli_runner().invoke(args=list(arguments), input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
