"""The way of an answer from the event loop to the thread that sends it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from chatkit.conversation.event_loop import MAX_WAITING_BYTES, Answer, event_loop

name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


def everything(answer: Answer) -> bytes:
    taken = b""
    while (chunk := answer.take(5)) is not None:
        taken += chunk
    return taken


def test_chunks_arrive_in_order_and_then_the_end() -> None:
    async def produce(answer: Answer) -> None:
        for number in range(1000):
            answer.put(b"%d " % number)
            if number % 100 == 0:
                await asyncio.sleep(0)

    answer = event_loop().answer(produce)
    assert everything(answer).split() == [b"%d" % number for number in range(1000)]
    assert answer.take() is None


def test_chunks_are_there_as_soon_as_they_are_put() -> None:
    async def produce(answer: Answer) -> None:
        for _ in range(3):
            answer.put(b"x")
            await asyncio.sleep(0.2)

    answer = event_loop().answer(produce)
    started = time.monotonic()
    assert answer.take() == b"x"
    assert time.monotonic() - started < 0.15
    assert everything(answer) == b"xx"


def test_silence_and_errors() -> None:
    async def produce(answer: Answer) -> None:
        await asyncio.sleep(0.3)
        answer.put(b"late")
        raise KeyError("gone")

    answer = event_loop().answer(produce)
    assert answer.take(0.05) == b""
    assert answer.take() == b"late"
    with pytest.raises(KeyError):
        answer.take()


def test_a_slow_reader_does_not_fill_the_memory() -> None:
    chunk = b"x" * 10_000
    put = 0

    async def produce(answer: Answer) -> None:
        nonlocal put
        for _ in range(200):
            answer.put(chunk)
            put += len(chunk)
            await answer.room()

    answer = event_loop().answer(produce)
    time.sleep(0.3)
    assert put <= MAX_WAITING_BYTES + 2 * len(chunk)
    assert len(everything(answer)) == 200 * len(chunk)


@pytest.mark.parametrize("waiting_for_room", [True, False])
def test_a_reader_that_leaves_interrupts_the_coroutine(waiting_for_room: bool) -> None:
    interrupted = threading.Event()

    async def produce(answer: Answer) -> None:
        try:
            if waiting_for_room:
                answer.put(b"x" * (MAX_WAITING_BYTES + 1))
                await answer.room()
            else:
                answer.put(b"x")
                await asyncio.sleep(30)
        except asyncio.CancelledError:
            interrupted.set()
            raise

    answer = event_loop().answer(produce)
    assert not interrupted.wait(0.1)
    answer.cancel()
    assert interrupted.wait(1)


def test_the_callers_context_comes_along() -> None:
    async def produce(answer: Answer) -> None:
        answer.put(name.get().encode())

    token = name.set("somebody")
    assert everything(event_loop().answer(produce)) == b"somebody"
    name.reset(token)


def test_there_is_one_loop() -> None:
    loops = []
    threads = [threading.Thread(target=lambda: loops.append(event_loop())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, loops))) == 1
