"""Traces of agents, at a fake of OpenAI."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import agents
import pytest

from chatkit.backends.selfhosted.chat import tracing
from tests.support.applications import MakeApp, served
from tests.support.chat import Caller, texts
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.responses_api import says, streaming

AGENT = "tests.support.agents_under_test:simple"
INGEST = "/v1/traces/ingest"


@pytest.mark.parametrize("is_on", [True, False])
def test_traces_are_sent_to_the_gateway_of_the_models(make_app: MakeApp, fake_openai: FakeOpenAI, is_on: bool) -> None:
    answer = streaming(says("Hello"))
    fake_openai.behaviour = lambda handler: handler.respond(204) if handler.path == INGEST else answer(handler)
    app = make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=AGENT, CHATKIT_TRACING=str(is_on).lower())
    with served(app) as url:
        assert texts(Caller(url).create("Hi")[1]) == ["Hello"]
    # The SDK sends them every five seconds, and this service when it stops.
    sent = [received for received in fake_openai.received if received.path == INGEST]
    assert len(sent) == is_on
    for received in sent:
        assert received.headers["authorization"] == f"Bearer {API_KEY}"
        assert "trace.span" in {entry["object"] for entry in received.body["data"]}


def test_shutdown_waits_two_seconds_for_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = threading.Event()
    monkeypatch.setattr(agents, "flush_traces", lambda: sent.wait(30))

    async def shut_down() -> float:
        task = asyncio.create_task(tracing.send_at_shutdown())
        await asyncio.sleep(0)
        cancelled = time.monotonic()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        sent.set()  # the loop waits for the thread, unlike a worker
        return time.monotonic() - cancelled

    assert 1.9 < asyncio.run(shut_down()) < 10
