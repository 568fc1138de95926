"""What costs processor time starts a few at a time, so that a burst from one address holds up nobody else."""

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
from tests.support.responses_api import says, streaming
from tests.support.upstream import Handler, Upstream


async def entered(starts: Starts, *holders: str) -> tuple[list[str], dict[str, list[Callable[[], None]]]]:
    """Have ``holders`` enter; who has started, in order, and the functions that end their starts."""
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


def test_each_holder_has_a_few_and_all_have_a_few_more() -> None:
    async def check() -> None:
        starts = Starts(width=3, each=2, seconds=60)
        order, _ = await entered(starts, "a", "a", "a", "b", "b")
        assert order == ["a", "a", "b"]

    asyncio.run(check())


def test_holders_that_wait_take_turns() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        order, ends = await entered(starts, "a", "a", "a", "b", "c", "b")
        while any(ends.values()):
            for waiting in ends.values():
                while waiting:
                    end = waiting.pop()
                    end()
                    end()  # counts once
            await settle()
        assert order == ["a", "a", "b", "c", "a", "b"]
        assert (starts._starting, starts._waiting) == ({}, {})

    asyncio.run(check())


def test_a_start_that_takes_long_makes_room() -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=0.05)
        order, ends = await entered(starts, "a", "b")
        assert order == ["a"]
        starts.seconds = 60  # for those that come now
        async with asyncio.timeout(10):
            while order != ["a", "b"]:
                await asyncio.sleep(0.01)
        ends["a"][0]()  # too late to count
        order, _ = await entered(starts, "c")
        assert order == []

    asyncio.run(check())


@pytest.mark.parametrize("admitted", [False, True])
def test_who_leaves_while_waiting_takes_no_place(admitted: bool) -> None:
    async def check() -> None:
        starts = Starts(width=1, each=1, seconds=60)
        _, ends = await entered(starts, "a")
        leaving = asyncio.create_task(starts.enter("b"))
        await settle()
        if admitted:
            ends["a"][0]()
            leaving.cancel()  # before the task has noticed
        else:
            leaving.cancel()
            await settle()
            ends["a"][0]()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        order, _ = await entered(starts, "c")
        assert order == ["c"]

    asyncio.run(check())


def test_who_waits_behind_one_that_has_left_is_admitted() -> None:
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
    """The users whose turns have started, in order; starting one takes an eighth of a second of waiting."""
    users: list[str] = []

    async def choose(user: str) -> Any:
        users.append(user)
        await asyncio.sleep(server.START_SECONDS / 2)
        return simple

    monkeypatch.setattr(agents_under_test, "choose_late", choose, raising=False)
    return users


def test_a_burst_of_one_address_holds_up_nobody_else(start: Start, upstream: Upstream, started: list[str]) -> None:
    upstream.behaviour = streaming(says("Hi."))
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
    assert started.index(users_id, 1) <= 5, "those of the burst that had started, and one that was next"


def visitor_at(url: str, address: str) -> Caller:
    visitor = Caller(url)
    visitor.http.headers["X-Forwarded-For"] = address
    return visitor


def test_a_model_that_is_asked_makes_room(start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model responds to none before it has been asked by all."""
    monkeypatch.setattr(server, "START_SECONDS", 60)
    url = start("simple").url
    burst = [visitor_at(url, "10.0.0.1") for _ in range(4 * blueprint.MAX_STARTS_PER_ADDRESS)]
    asked_by_all = threading.Barrier(len(burst))
    speak = streaming(says("Hi."))

    def behave(handler: Handler) -> None:
        asked_by_all.wait(20)
        speak(handler)

    upstream.behaviour = behave
    with ThreadPoolExecutor(len(burst)) as threads:
        for turn in [threads.submit(visitor.create, "Hello") for visitor in burst]:
            assert texts(turn.result()[1]) == ["Hi."]


def test_a_slow_database_is_not_given_more_turns(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the database counts as starting, so that turns which have started are not cut off by later ones."""
    monkeypatch.setattr(server, "START_SECONDS", 0.05)
    save, saving, most = SqlStore.save_thread, [0], [0]

    async def slow(self: SqlStore, thread: ThreadMetadata, context: ChatContext) -> None:
        if thread.title is None:  # it is new
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
