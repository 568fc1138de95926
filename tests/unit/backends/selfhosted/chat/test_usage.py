"""What models use is stored and logged in every shape, however a response ends, and limited per user and day."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from agents import Usage
from sqlalchemy import Engine, create_engine, insert, select, text, update

from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.usage import UsageStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.database.tables import UsageRow
from chatkit.backends.selfhosted.sessions import SessionStore
from tests.support.agents_under_test import seen
from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import Handler, responding
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import Recorder
from tests.support.postgres import new_postgres_database
from tests.support.responses_api import calls, says, streaming
from tests.support.store import IMAGE_URLS, run
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"
INCOMPLETE: dict[str, Any] = {
    "type": "response.incomplete",
    "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
}
FAILED: dict[str, Any] = {
    "type": "response.failed",
    "response": {"status": "failed", "error": {"code": "server_error", "message": "An internal detail"}},
}


def today() -> Any:
    return datetime.now(UTC).date()


def used(database: str) -> list[tuple[Any, ...]]:
    """Agent, requests and tokens of each row of today."""
    columns = [UsageRow.agent, UsageRow.requests, UsageRow.input_tokens, UsageRow.output_tokens, UsageRow.total_tokens]
    with create_engine(database).connect() as connection:
        rows = connection.execute(select(*columns).where(UsageRow.day == today()).order_by(UsageRow.agent))
        return [tuple(row) for row in rows]


def requests_of(agent: str, number: int) -> tuple[Any, ...]:
    """The row of ``agent`` after so many requests. One uses 1 token of input and 1 of output."""
    return (agent, number, number, number, 2 * number)


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The structured lines about usage."""
    found: list[dict[str, Any]] = []
    names = ("model_requests", "input_tokens", "output_tokens", "total_tokens", "agents")

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "total_tokens"):
                found.append({name: getattr(record, name) for name in names})

    handler, logger = Lines(), logging.getLogger("chatkit.backends.selfhosted.chat.usage")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


TOOL = [calls("weather", city="Paris"), says("Sun")]
SHAPES: dict[str, tuple[list[Any], list[tuple[Any, ...]]]] = {
    "with_tool": (TOOL, [requests_of("With a tool", 2)]),
    "with_tool_for_user": (TOOL, [requests_of("With a tool", 2)]),
    "handing_over": (
        [calls("transfer_to_simple"), says("Hello")],
        [requests_of("Handing over", 1), requests_of("Simple", 1)],
    ),
    "tool_workflow": (TOOL, [requests_of("With a tool", 2)]),
    "runs_two_at_once": ([says("Hello")], [requests_of("Simple", 2)]),
    "runs_another_agent_as_tool": (
        [calls("expert", input="The weather?"), *TOOL, says("It is sunny")],
        [requests_of("Boss", 2), requests_of("With a tool", 2)],
    ),
    f"{SERVERS}:WithTool": (TOOL, [requests_of("With a tool", 2)]),
    f"{SERVERS}:Desk": (
        [calls("ask_expert", input="A slate?"), says("A slate"), says("It is a slate")],
        [requests_of("Desk", 2), requests_of("Expert", 1)],
    ),
}


@pytest.mark.parametrize("agent", SHAPES)
def test_it_is_stored_for_each_agent(
    start: Start, fake_openai: FakeOpenAI, agent: str, tmp_path: Any, lines: list[dict[str, Any]]
) -> None:
    answers, rows = SHAPES[agent]
    caller = start(agent)
    fake_openai.behaviour = streaming(*answers)
    _, events = caller.create("Hello")
    assert errors(events) == []
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == rows)
    (line,) = lines
    assert line["agents"] == [row[0] for row in rows]
    totals = [sum(amounts) for amounts in zip(*(row[1:] for row in rows), strict=True)]
    assert [line[name] for name in ("model_requests", "input_tokens", "output_tokens", "total_tokens")] == totals


@pytest.mark.parametrize("agent", ["asking_experts", "asking_experts_for_user", "experts_workflow", f"{SERVERS}:AskingExperts"])
def test_it_is_stored_for_agents_at_the_same_time(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, agent: str) -> None:
    other_call = json.loads(json.dumps(calls("quick", input="?")).replace("call_1", "call_2").replace("fc_of", "fc_2_of"))
    of_boss = streaming([*calls("slow", input="?"), *other_call], says("Both agree"))
    quick, slow = threading.Event(), threading.Event()

    def behave(handler: Handler) -> None:
        """The slow expert answers after the quick one, which is asked after it."""
        model = handler.received.body["model"]
        if model == "gpt-test":
            of_boss(handler)
        elif model == "gpt-slow":
            slow.set()
            assert quick.wait(10)
            time.sleep(0.3)
            streaming(says("Much"))(handler)
        else:
            assert slow.wait(10)
            streaming(says("Little"))(handler)
            quick.set()

    caller = start(agent)
    fake_openai.behaviour = behave
    _, events = caller.create("Hello")
    assert texts(events) == ["Both agree"]
    rows = [requests_of("Asking experts", 2), requests_of("Quick expert", 1), requests_of("Slow expert", 1)]
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == rows)


def test_responses_add_up(start: Start, fake_openai: FakeOpenAI, database: str, lines: list[dict[str, Any]]) -> None:
    caller = start("simple", DATABASE_URL=database)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    for _ in range(2):
        caller.say(thread_id, "And again")
    other = Caller(caller.url)
    other.create("Hello")
    wait_for(lambda: sorted(used(database)) == [requests_of("Simple", 1), requests_of("Simple", 3)])
    assert [line["total_tokens"] for line in lines] == [2, 2, 2, 2]


def test_the_demo_uses_nothing(start: Start, tmp_path: Any, lines: list[dict[str, Any]]) -> None:
    start("", OPENAI_API_KEY="").create("Hello")
    assert used(f"sqlite:///{tmp_path}/chatkit.db") == []
    assert lines == []


ENDINGS: dict[str, tuple[str, list[Any], int]] = {
    "an error of the model's service": ("with_tool", [calls("weather", city="Paris"), [FAILED]], 2),
    "an answer that is too long": ("simple", [[*says("Half of"), INCOMPLETE]], 1),
    "an answer that is too long, in a workflow": ("run_workflow", [[*says("Half of"), INCOMPLETE]], 1),
    "an answer that is too long, of a server": (f"{SERVERS}:Plain", [[*says("Half of"), INCOMPLETE]], 1),
    "an unknown tool": ("with_tool", [calls("no_such_tool")], 1),
    "an output guardrail": ("guarded", [says("the secret word")], 1),
    "an input guardrail": ("guarded", [says("Hello")], 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_response_that_fails_is_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, ending: str) -> None:
    agent, answers, number = ENDINGS[ending]
    caller = start(agent)
    fake_openai.behaviour = streaming(*answers)
    _, events = caller.create("forbidden" if ending == "an input guardrail" else "Hello")
    assert len(errors(events)) == 1
    wait_for(lambda: [row[1:] for row in used(f"sqlite:///{tmp_path}/chatkit.db")] == [requests_of("", number)[1:]])


@pytest.mark.parametrize("how", ["the reader leaves", "the time limit"])
@pytest.mark.parametrize("agent", ["with_tool", "tool_workflow", f"{SERVERS}:WithTool"])
def test_a_response_that_is_cancelled_is_counted(
    start: Start, fake_openai: FakeOpenAI, tmp_path: Any, agent: str, how: str
) -> None:
    caller = start(agent, CHATKIT_TURN_SECONDS="2" if how == "the time limit" else "30")
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), [*says("A long"), 5.0])
    stream: Any = caller.stream("threads.create", input=user_input("Hello"))
    if how == "the reader leaves":
        while next(stream).type != "thread.item.updated":
            pass
        stream.close()
    else:
        assert len(errors(list(stream))) == 1
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [requests_of("With a tool", 1)])


def test_a_run_that_outlives_its_response_is_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start(f"{SERVERS}:Afterwards")
    going_on, answer = threading.Event(), streaming(says("Hello"))
    fake_openai.behaviour = lambda handler: answer(handler) if going_on.wait(30) else None
    _, events = caller.create("Hello")
    assert texts(events) == ["Later"]
    assert used(f"sqlite:///{tmp_path}/chatkit.db") == []
    going_on.set()
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [requests_of("Simple", 1)])


TOKENS = {"type": "tokens", "input_tokens": 5, "output_tokens": 2, "total_tokens": 7}


@pytest.mark.parametrize(("reported", "row"), [(TOKENS, (1, 5, 2, 7)), ({"type": "duration", "seconds": 3}, (1, 0, 0, 0))])
def test_dictation_is_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, reported: Any, row: Any) -> None:
    caller = start("simple")
    fake_openai.behaviour = responding(200, {"text": "Hello", "usage": reported})
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm").json() == {"text": "Hello"}
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [("Dictation", *row)])


def test_own_hooks_are_called(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    seen.clear()
    caller = start("hooked_workflow")
    fake_openai.behaviour = streaming(*TOOL)
    _, events = caller.create("Hello")
    assert texts(events) == ["Sun"]
    assert seen == ["start", "llm_start", "llm_end", "tool", "llm_start", "llm_end", "end", 4]
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [requests_of("With a tool", 2)])


def test_a_database_that_cannot_store_it(start: Start, fake_openai: FakeOpenAI, database: str, recorder: Recorder) -> None:
    caller = start("simple", DATABASE_URL=database)
    with create_engine(database).begin() as connection:
        connection.execute(text("DROP TABLE chat_usage"))
    before = len(recorder.lines)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Hello"])
    wait_for(lambda: any("usage could not be stored (OperationalError)" in line for line in recorder.lines[before:]))
    assert texts(caller.say(thread_id, "Again")) == ["Hello"]


def test_a_response_does_not_wait_for_it(start: Start, fake_openai: FakeOpenAI, postgres: str) -> None:
    address = new_postgres_database(postgres)
    caller = start("simple", DATABASE_URL=address)
    fake_openai.behaviour = streaming(says("Hello"))
    with psycopg.connect(address) as connection:
        connection.execute("LOCK TABLE chat_usage")
        began = time.monotonic()
        thread_id, events = caller.create("Hello")
        assert texts(events) == ["Hello"]
        assert texts(caller.say(thread_id, "Again")) == ["Hello"]
        assert time.monotonic() - began < 3
    wait_for(lambda: used(address.replace("postgresql://", "postgresql+psycopg://")) == [requests_of("Simple", 2)])


@pytest.fixture
def engine(database: str) -> Engine:
    return open_database(database)


def test_what_is_being_stored_at_a_shutdown_is_stored(engine: Engine) -> None:
    store = SqlStore(engine, IMAGE_URLS)
    usage = UsageStore(engine, store, None)
    going_on = threading.Event()
    for _ in range(5):  # all threads of the store are busy
        store.submit(lambda _connection: going_on.wait(10), 10)
    meter = usage.meter("anonymous:ada")
    meter.add("Agent", 1, Usage(input_tokens=3, output_tokens=4, total_tokens=7))
    meter.close()

    async def shut_down() -> None:
        task = asyncio.create_task(usage.finish_at_shutdown())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.2, going_on.set)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert used(engine.url.render_as_string(hide_password=False)) == [("Agent", 1, 3, 4, 7)]

    run(shut_down())


def test_the_name_of_an_agent_may_be_long(engine: Engine) -> None:
    usage = UsageStore(engine, SqlStore(engine, IMAGE_URLS), None)
    meter = usage.meter("anonymous:ada")
    meter.add("x" * 300, 1, Usage(total_tokens=7))
    meter.close()
    wait_for(lambda: [row[0] for row in used(engine.url.render_as_string(hide_password=False))] == ["x" * 255])


def test_old_records_are_deleted(engine: Engine) -> None:
    days = [datetime.now(UTC).date() - timedelta(days=ago) for ago in (0, 9, 11, 400)]
    amounts = {"requests": 1, "input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    with engine.begin() as connection:
        connection.execute(insert(UsageRow), [{"user_id": "u", "day": day, "agent": "a", **amounts} for day in days])
    for retention_days, kept in ((None, days), (10, days[:2])):
        SessionStore(engine, 600, retention_days).maintain()
        with engine.connect() as connection:
            assert list(connection.execute(select(UsageRow.day).order_by(UsageRow.position)).scalars()) == kept


SIGNED_IN = {"AUTH_JWT_SECRET": SECRET}


def turn(caller: Caller) -> Any:
    """The response to a new message, after that to the last one is stored."""
    return caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}})


@pytest.mark.parametrize("who", ["visitor", "user"])
@pytest.mark.parametrize(("limit", "turns"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_limit(start: Start, fake_openai: FakeOpenAI, database: str, who: str, limit: int, turns: int) -> None:
    """A turn uses two tokens. The one that reaches the limit is the last."""
    caller = start("simple", DATABASE_URL=database, CHATKIT_TOKENS_PER_DAY=str(limit), **SIGNED_IN)
    asking = Caller(caller.url, shared(sub="ada")) if who == "user" else caller
    fake_openai.behaviour = streaming(says("Hello"))
    for _ in range(turns):
        assert turn(asking).status_code == 200
    asked = len(fake_openai.received)
    refused = turn(asking)
    assert refused.status_code == 429
    envelope = {"status": "error", "code": "too_many_requests", "message": "Too many requests. Please try again in a moment."}
    assert refused.json() == envelope
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    assert abs(int(refused.headers["Retry-After"]) - (midnight - now).total_seconds()) < 10
    assert "RateLimit-Limit" not in refused.headers, "that is the limit per minute"
    asking.refresh()
    assert turn(asking).status_code == 429, "in a new session"
    assert len(fake_openai.received) == asked, "no model was called"

    other = Caller(caller.url, shared(sub="eve")) if who == "user" else Caller(caller.url)
    assert turn(other).status_code == 200, "another user"
    assert asking.post("threads.list").status_code == 200, "reading is no turn"


@pytest.mark.parametrize("type_", ["input.transcribe", "threads.sync_custom_action"])
def test_whatever_calls_a_model_is_limited(start: Start, fake_openai: FakeOpenAI, type_: str) -> None:
    caller = start("simple", CHATKIT_TOKENS_PER_DAY="1")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    params: dict[str, dict[str, Any]] = {
        "input.transcribe": {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"},
        "threads.sync_custom_action": {"thread_id": thread_id, "action": {"type": "press", "payload": {}}},
    }
    assert caller.post(type_, **params[type_]).status_code == 429


def test_the_next_day(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start("simple", DATABASE_URL=database, CHATKIT_TOKENS_PER_DAY="2")
    fake_openai.behaviour = streaming(says("Hello"))
    assert turn(caller).status_code == 200
    assert turn(caller).status_code == 429
    with create_engine(database).begin() as connection:
        connection.execute(update(UsageRow).values(day=today() - timedelta(days=1)))
    assert turn(caller).status_code == 200
    assert turn(caller).status_code == 429


def test_the_limit_is_for_all_processes(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    variables = {"DATABASE_URL": database, "CHATKIT_TOKENS_PER_DAY": "2", **SIGNED_IN}
    fake_openai.behaviour = streaming(says("Hello"))
    for status in (200, 429):
        caller = Caller(start("simple", **variables).url, shared(sub="ada"))
        assert turn(caller).status_code == status
        wait_for(lambda: used(database) == [requests_of("Simple", 1)])


def test_without_the_setting_nothing_is_added_up(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start("simple", DATABASE_URL=database)
    fake_openai.behaviour = streaming(says("Hello"))
    for _ in range(3):
        assert turn(caller).status_code == 200


def test_a_database_that_cannot_add_up(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    """A limit that can't be checked is no reason to spend more."""
    caller = start("simple", DATABASE_URL=database, CHATKIT_TOKENS_PER_DAY="2")
    with create_engine(database).begin() as connection:
        connection.execute(text("DROP TABLE chat_usage"))
    answer = turn(caller)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert fake_openai.received == []
