"""Usage, and the warning of models that end, with several processes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat import Caller, texts, user_input
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.fake_server import Handler
from tests.support.responses_api import calls, says, streaming
from tests.support.service import Service
from tests.support.waiting import wait_for


def variables(fake_openai: FakeOpenAI, tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "CHATKIT_BACKEND": "selfhosted",
        "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db",
        "OPENAI_API_KEY": API_KEY,
        "CHATKIT_API_BASE": fake_openai.url,
        "CHATKIT_AGENT": "tests.support.agents_under_test:with_tool",
        **more,
    }


def used(tmp_path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(tmp_path / "chatkit.db")) as connection:
        return connection.execute("SELECT agent, requests, total_tokens FROM chat_usage").fetchall()


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as running:
        yield running


def test_limit_of_two_processes(fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    fake_openai.behaviour = streaming(says("Hello"))
    with Service(**variables(fake_openai, tmp_path, WEB_CONCURRENCY="2", CHATKIT_TOKENS_PER_DAY="6")) as service:
        caller = Caller(service.url)
        for number in range(1, 4):
            assert texts(caller.create("Hello")[1]) == ["Hello"]
            wait_for(lambda number=number: used(tmp_path) == [("With a tool", number, 2 * number)])  # type: ignore[misc]
        for _ in range(8):  # each process gets some
            caller.http.close()
            assert caller.post("threads.create", input=user_input("Hello")).status_code == 429
    lines = [json.loads(line) for line in service.log.splitlines() if '"model_requests"' in line]
    assert [(line["model_requests"], line["total_tokens"], line["agents"]) for line in lines] == [(1, 2, ["With a tool"])] * 3
    assert all(line["request_id"] and line["session_id"] for line in lines)
    assert "more than 6 tokens per day of one user" in service.log


def test_response_that_a_shutdown_interrupts_is_counted(fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), [*says("A long"), 30.0])
    with Service(**variables(fake_openai, tmp_path, WEB_CONCURRENCY="1", CHATKIT_STOP_SECONDS="3")) as service:
        stream = Caller(service.url).stream("threads.create", input=user_input("Hello"))
        while next(stream).type != "thread.item.updated":
            pass
        service.stop()
    ((agent, requests, tokens),) = used(tmp_path)
    assert (agent, requests) == ("With a tool", 2)
    assert tokens > 2, "the call that was interrupted is estimated"


def test_each_process_asks_for_the_models_once(fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    ends = str(datetime.now(UTC).date() + timedelta(days=30))
    model = {"id": "gpt-test", "object": "model", "created": 1, "owned_by": "openai", "shutdown_date": ends}
    asked = []

    def list_models(handler: Handler) -> None:
        asked.append(handler.path)
        handler.respond(200, {"object": "list", "data": [model]})

    fake_openai.list_models = list_models
    with Service(**variables(fake_openai, tmp_path, WEB_CONCURRENCY="2")) as service:
        wait_for(lambda: service.log_so_far().count("OpenAI shuts down the model gpt-test") == 2, 15)
    assert len(asked) == 2
    (line, _) = [json.loads(line) for line in service.log.splitlines() if "shuts down the model" in line]
    assert line["level"] == "WARNING"
