"""The log warns at start-up of models that OpenAI shuts down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Self

import pytest
from agents.models import get_default_model

from chatkit.backends.selfhosted import backend
from chatkit.backends.selfhosted.chat import model_shutdowns
from chatkit.backends.selfhosted.chat.model_shutdowns import warn_of_shutdowns
from tests.support.applications import Start
from tests.support.fake_openai import API_KEY, FakeOpenAI, failing
from tests.support.fake_server import Behaviour, Handler, responding
from tests.support.leaks import Recorder
from tests.support.waiting import wait_for

COMPOSER = json.dumps({"models": [{"id": "gpt-best", "label": "Best"}, {"id": "gpt-test", "label": "The same"}], "tools": []})
TODAY = date(2026, 11, 30)


class _Today(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.combine(TODAY, cls.min.time(), tz)


def listing(**shutdowns: int | None) -> Behaviour:
    """Lists models that end after so many days; underscores stand for hyphens."""
    dates = {name.replace("_", "-"): None if days is None else f"{TODAY + timedelta(days)}" for name, days in shutdowns.items()}
    models = [
        {"id": name, "object": "model", "created": 1, "owned_by": "openai", "shutdown_date": ends}
        for name, ends in dates.items()
    ]
    return responding(200, {"object": "list", "data": models})


@pytest.fixture
def warnings(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Starts the service, and returns what it warns of when it has asked."""

    def warnings(agent: str = "", **variables: str) -> list[str]:
        before, list_models, done = len(recorder.lines), fake_openai.list_models, threading.Event()

        def answer(handler: Handler) -> None:
            list_models(handler)
            assert handler.headers["Authorization"] == f"Bearer {API_KEY}"

        async def warn(*arguments: Any) -> None:
            await warn_of_shutdowns(*arguments)
            done.set()

        fake_openai.list_models = answer
        monkeypatch.setattr(backend, "warn_of_shutdowns", warn)
        monkeypatch.setattr(model_shutdowns, "datetime", _Today)
        start(agent, **variables)
        assert done.wait(30)
        return [json.loads(line)["message"] for line in recorder.lines[before:] if "shut" in line and "down the model" in line]

    return warnings


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (61, None),
        (60, "OpenAI shuts down the model gpt-test on {}. It is named by: CHATKIT_MODEL"),
        (0, "OpenAI shut down the model gpt-test on {}. It is named by: CHATKIT_MODEL"),
        (-300, "OpenAI shut down the model gpt-test on {}. It is named by: CHATKIT_MODEL"),
        (None, None),
    ],
)
def test_warning_begins_sixty_days_before_the_shutdown(
    warnings: Callable[..., list[str]], fake_openai: FakeOpenAI, days: int | None, message: str | None
) -> None:
    fake_openai.list_models = listing(gpt_test=days, gpt_other=1)
    expected = [message.format(TODAY + timedelta(days or 0))] if message else []
    assert warnings(CHATKIT_MODEL="gpt-test") == expected


OF_MODULE = ["the agent Support", "the agent Billing", "the agent Refunds", "the agent Expert"]
NAMED: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "the default model": ("", {}, ["the default of the Agents SDK"]),
    "a model with the name of its provider": ("", {"CHATKIT_MODEL": "openai/gpt-test"}, ["CHATKIT_MODEL"]),
    "titles": ("", {"CHATKIT_MODEL": "gpt-other", "CHATKIT_TITLE_MODEL": "gpt-test"}, ["CHATKIT_TITLE_MODEL"]),
    "dictation": (
        "",
        {"CHATKIT_MODEL": "gpt-other", "CHATKIT_TRANSCRIPTION_MODEL": "gpt-test"},
        ["CHATKIT_TRANSCRIPTION_MODEL"],
    ),
    "the composer": ("", {"CHATKIT_MODEL": "gpt-other", "CHATKIT_COMPOSER": COMPOSER}, ["CHATKIT_COMPOSER"]),
    "an agent": ("tests.support.agents_with_models:agent", {}, OF_MODULE),
    "a workflow": ("tests.support.agents_with_models:run_workflow", {}, OF_MODULE),
    "a server": ("tests.support.agents_with_models:Server", {}, [*OF_MODULE, "the agent Own"]),
}


@pytest.mark.parametrize("who", NAMED)
def test_warning_says_what_names_the_model(warnings: Callable[..., list[str]], fake_openai: FakeOpenAI, who: str) -> None:
    agent, variables, sources = NAMED[who]
    model = get_default_model() if who == "the default model" else "gpt-test"
    fake_openai.list_models = listing(**{model: 1})
    ends = TODAY + timedelta(1)
    assert warnings(agent, **variables) == [
        f"OpenAI shuts down the model {model} on {ends}. It is named by: {', '.join(sources)}"
    ]


def test_one_warning_for_each_model(warnings: Callable[..., list[str]], fake_openai: FakeOpenAI) -> None:
    fake_openai.list_models = listing(gpt_test=1, gpt_best=2)
    found = warnings(CHATKIT_MODEL="gpt-test", CHATKIT_TITLE_MODEL="gpt-test", CHATKIT_COMPOSER=COMPOSER)
    assert [line.partition("It is named by: ")[2] for line in found] == [
        "CHATKIT_TITLE_MODEL, CHATKIT_COMPOSER, CHATKIT_MODEL",
        "CHATKIT_COMPOSER",
    ]


FAILURES: dict[str, Behaviour] = {
    "503": failing(503, "server_error"),
    "no JSON": responding(200, b"An internal detail"),
    "another type": responding(200, {"data": [{"id": "gpt-test", "shutdown_date": "soon"}]}),
    "hangs up": Handler.hang_up,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_is_logged_in_one_line(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, failure: str) -> None:
    before = len(recorder.lines)
    fake_openai.list_models = FAILURES[failure]
    caller = start("", CHATKIT_MODEL="gpt-test")
    wait_for(lambda: any("OpenAI's models could not be listed" in line for line in recorder.lines[before:]), 15)
    assert "internal detail" not in "".join(recorder.lines[before:])
    assert caller.post("threads.list").status_code == 200


def test_rejected_key_is_a_warning(start: Start, fake_openai: FakeOpenAI, caplog: pytest.LogCaptureFixture) -> None:
    fake_openai.list_models = failing(401, "invalid_api_key")
    start("", CHATKIT_MODEL="gpt-test")
    wait_for(lambda: "OPENAI_API_KEY: OpenAI rejects the key" in caplog.text, 15)


def test_start_does_not_wait_for_the_models(start: Start, fake_openai: FakeOpenAI) -> None:
    asked, going_on = threading.Event(), threading.Event()

    def hang(handler: Handler) -> None:
        asked.set()
        going_on.wait(30)

    fake_openai.list_models = hang
    caller = start("simple")
    assert caller.post("threads.list").status_code == 200
    assert asked.wait(10)
    going_on.set()


def test_models_are_not_listed_without_a_key(start: Start, fake_openai: FakeOpenAI) -> None:
    def refuse(handler: Handler) -> None:
        raise AssertionError

    fake_openai.list_models = refuse
    caller = start("", OPENAI_API_KEY="")
    assert caller.post("threads.list").status_code == 200
    time.sleep(0.3)
    assert fake_openai.connections == 0
