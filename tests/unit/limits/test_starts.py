"""Turns start a few at a time per address, so that a burst from one address does not delay others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from chatkit.types import ThreadMetadata

from chatkit.backends.selfhosted.chat import blueprint, server
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.limits.starts import Starts
from tests.support import agents_under_test
from tests.support.agents_under_test import simple
from tests.support.applications import Start
from tests.support.chat import Caller, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import Handler
from tests.support.responses_api import says, streaming


async def entered(starts: Starts, *holders: str) -> tuple[list[str], dict[str, list[Callable[[], None]]]]:
    """Let ``holders`` enter. Return those that have started, in order, and the functions that end their starts."""
    order: list[str] = []
    ends: dict[str, list[Callable[[], None]]] = {}

    async def enter(holder: str) -> None:
        end = await starts.enter(holder)
        order.append(holder)
        ends.setdefault(holder, []).append(end)

    for holder in holders:
        asyncio.get_running_loop().create_task(enter(holder))
    await settle()
    return order, ends


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_limits_per_holder_and_in_total() -> None:
    async def check() -> None:
        starts = Starts(width=3, each=2, seconds=60)
        order, _ = await entered(starts, "a", "a", "a", "b", "b")
        assert order == ["a", "a", "b"]

    asyncio.run(check())


def test_ended_start_makes_room_for_one() -> None:
    async def check() -> None:
        starts = Starts(width=3, each=2, seconds=60)
        order, ends = await entered(starts, "a", "a", "a", "a")
        assert order == ["a", "a"]
        ends["a"][0]()
        await settle()
        assert order == ["a", "a", "a"]
        later, _ = await entered(starts, "a")
        assert (order, later) == (["a", "a", "a"], [])

    asyncio.run(check())


def test_first_waiter_of_a_holder_is_admitted_first() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        _, ends = await entered(starts, "a")
        first, second = (asyncio.create_task(starts.enter("a")) for _ in range(2))
        await settle()
        ends["a"][0]()
        await settle()
        assert (first.done(), second.done()) == (True, False)
        second.cancel()

    asyncio.run(check())


def test_waiting_holders_are_admitted_in_turn() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        order, ends = await entered(starts, "a", "a", "a", "b", "c", "b")
        while any(ends.values()):
            for waiting in ends.values():
                while waiting:
                    end = waiting.pop()
                    end()
                    end()  # ending twice has no effect
            await settle()
        assert order == ["a", "a", "b", "c", "a", "b"]
        assert (starts._starting, starts._waiting) == ({}, {})

    asyncio.run(check())


def test_long_start_stops_counting() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=0.05)
        order, ends = await entered(starts, "a", "b")
        assert order == ["a"]
        starts.seconds = 60  # for later starts
        async with asyncio.timeout(10):
            while order != ["a", "b"]:
                await asyncio.sleep(0.01)
        ends["a"][0]()  # has no effect after the timeout
        order, _ = await entered(starts, "c")
        assert order == []

    asyncio.run(check())


@pytest.mark.parametrize("admitted", [False, True])
def test_cancelled_waiter_does_not_count(admitted: bool) -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        _, ends = await entered(starts, "a")
        leaving = asyncio.create_task(starts.enter("b"))
        await settle()
        if admitted:
            ends["a"][0]()
            leaving.cancel()  # before the task resumes
        else:
            leaving.cancel()
            await settle()
            ends["a"][0]()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        order, _ = await entered(starts, "c")
        assert order == ["c"]

    asyncio.run(check())


def test_cancelled_waiter_makes_no_room() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        _, ends = await entered(starts, "a")
        leaving = asyncio.create_task(starts.enter("b"))
        await settle()
        leaving.cancel()
        order, _ = await entered(starts, "c")
        assert order == []
        ends["a"][0]()
        await settle()
        assert order == ["c"]

    asyncio.run(check())


def test_waiter_behind_a_cancelled_one_is_admitted() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        _, ends = await entered(starts, "a")
        leaving = asyncio.create_task(starts.enter("a"))
        await settle()
        order, _ = await entered(starts, "a")
        leaving.cancel()
        ends["a"][0]()
        await settle()
        assert order == ["a"]

    asyncio.run(check())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The users whose turns have started, in order. Each start waits for ``START_SECONDS / 2``."""
    monkeypatch.setattr(server, "START_SECONDS", 2.0)
    users: list[str] = []

    async def choose(user: str) -> Any:
        users.append(user)
        await asyncio.sleep(server.START_SECONDS / 2)
        return simple

    monkeypatch.setattr(agents_under_test, "choose_late", choose, raising=False)
    return users


def test_burst_from_one_address_does_not_delay_others(start: Start, fake_openai: FakeOpenAI, started: list[str]) -> None:
    fake_openai.behaviour = streaming(says("Hi."))
    url = start("choose_late").url
    burst = [visitor_at(url, "10.0.0.1") for _ in range(10)]
    other = visitor_at(url, "10.0.0.2")
    other.create("Hello")
    [users_id] = started
    with ThreadPoolExecutor(len(burst)) as threads:
        turns = [threads.submit(visitor.create, "Hello") for visitor in burst]
        while len(started) == 1:
            time.sleep(0.01)
        other.create("Hello")
        for turn in turns:
            turn.result()
    assert len(started) == len(burst) + 2
    assert started.index(users_id, 1) <= 5, "after those of the burst that had started, and one more"


def visitor_at(url: str, address: str) -> Caller:
    visitor = Caller(url)
    visitor.http.headers["X-Forwarded-For"] = address
    return visitor


@pytest.mark.parametrize("agent", ["simple", "tests.support.servers_under_test:Plain"])
def test_turn_that_waits_for_its_model_does_not_count(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    """The model responds only after all have asked it."""
    monkeypatch.setattr(server, "START_SECONDS", 60)
    url = start(agent).url
    burst = [visitor_at(url, "10.0.0.1") for _ in range(4 * blueprint.MAX_STARTS_PER_ADDRESS)]
    asked_by_all = threading.Barrier(len(burst))
    speak = streaming(says("Hi."))

    def behave(handler: Handler) -> None:
        asked_by_all.wait(20)
        speak(handler)

    fake_openai.behaviour = behave
    with ThreadPoolExecutor(len(burst)) as threads:
        for turn in [threads.submit(visitor.create, "Hello") for visitor in burst]:
            assert texts(turn.result()[1]) == ["Hi."]


@pytest.mark.parametrize(
    ("type_", "params"),
    [
        ("items.feedback", {"item_ids": ["msg_1"], "kind": "positive"}),
        ("input.transcribe", {"audio_base64": "AAAA", "mime_type": "audio/webm"}),
        ("threads.sync_custom_action", {"action": {"type": "any"}}),
    ],
)
def test_method_of_a_server_that_waits_does_not_count(
    start: Start, fake_openai: FakeOpenAI, type_: str, params: dict[str, Any]
) -> None:
    """Each request is answered only after all have reached the server."""
    fake_openai.behaviour = streaming(says("Hi."))
    url = start("tests.support.servers_under_test:Gathering").url
    burst = [visitor_at(url, "10.0.0.1") for _ in range(4 * blueprint.MAX_STARTS_PER_ADDRESS)]
    of_thread = "thread_id" if type_ != "input.transcribe" else "ignored"
    with ThreadPoolExecutor(len(burst)) as threads:
        threads_of = list(threads.map(lambda visitor: visitor.create("Hello")[0], burst))
        sent = [
            threads.submit(visitor.post, type_, **params, **{of_thread: id_})
            for visitor, id_ in zip(burst, threads_of, strict=True)
        ]
        assert [each.result().status_code for each in sent] == [200] * len(burst)


def test_turn_that_waits_for_the_database_counts(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the database counts as starting, so that later turns do not take time from those that have started."""
    monkeypatch.setattr(server, "START_SECONDS", 0.05)
    save, saving, most = SqlStore.save_thread, [0], [0]

    async def slow(self: SqlStore, thread: ThreadMetadata, context: ChatContext) -> None:
        if thread.title is None:  # a new thread
            saving[0] += 1
            most[0] = max(most[0], saving[0])
            await asyncio.sleep(0.3)
            saving[0] -= 1
        await save(self, thread, context)

    monkeypatch.setattr(SqlStore, "save_thread", slow)
    url = start("simple").url
    burst = [visitor_at(url, "10.0.0.1") for _ in range(6)]
    with ThreadPoolExecutor(len(burst)) as threads:
        for turn in [threads.submit(visitor.create, "Hello") for visitor in burst]:
            turn.result()
    assert most[0] == blueprint.MAX_STARTS_PER_ADDRESS
