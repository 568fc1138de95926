"""What models use is stored and logged, and limited per user and day."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from concurrent.futures import wait
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import requests
from agents import Usage
from sqlalchemy import Engine, create_engine, delete, insert, select, text, update

from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.usage import MAX_AMOUNT, UsageStore
from chatkit.backends.selfhosted.database.tables import SessionRow, UsageRow
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.identity.user import User
from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import Handler, responding, silent
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import Recorder
from tests.support.postgres import new_postgres_database
from tests.support.responses_api import says, streaming
from tests.support.store import IMAGE_URLS, run
from tests.support.usage import requests_of, today, used
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"


def test_responses_add_up(start: Start, fake_openai: FakeOpenAI, database: str, usage_lines: list[dict[str, Any]]) -> None:
    caller = start("simple", DATABASE_URL=database)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    for _ in range(2):
        caller.say(thread_id, "And again")
    other = Caller(caller.url)
    other.create("Hello")
    wait_for(lambda: sorted(used(database)) == [requests_of("Simple", 1), requests_of("Simple", 3)])
    assert [line["total_tokens"] for line in usage_lines] == [2, 2, 2, 2]


def test_responses_that_the_user_stops_count_for_the_limit(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start("simple", CHATKIT_TOKENS_PER_DAY="30")
    fake_openai.behaviour = streaming([*says("word " * 30), 30.0])
    stream: Any = caller.stream("threads.create", input=user_input("Hello"))
    while getattr(getattr(next(stream), "update", None), "type", "") != "assistant_message.content_part.done":
        pass
    stream.close()
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db"))
    assert caller.post("threads.create", input=user_input("Hello")).status_code == 429


TOKENS = {"type": "tokens", "input_tokens": 5, "output_tokens": 2, "total_tokens": 7}


@pytest.mark.parametrize(
    ("reported", "row"),
    [
        (TOKENS, (1, 5, 2, 7)),
        ({"type": "duration", "seconds": 3}, (1, 0, 0, 0)),
        ({**TOKENS, "input_tokens": -50, "total_tokens": 10**30}, (1, 0, 2, MAX_AMOUNT)),
    ],
)
def test_dictation_is_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, reported: Any, row: Any) -> None:
    caller = start("simple")
    fake_openai.behaviour = responding(200, {"text": "Hello", "usage": reported})
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm").json() == {"text": "Hello"}
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [("Dictation", *row)])


@pytest.mark.parametrize(
    ("behaviour", "row"),
    [
        (silent(1), ("Dictation", 1, 20, 0, 20)),
        (Handler.hang_up, None),
        (responding(400, {"error": {"message": "inner"}}), None),
        (responding(401, {"error": {"message": "inner"}}), None),
    ],
)
def test_dictation_without_a_result(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, behaviour: Any, row: Any) -> None:
    """If the caller leaves, OpenAI goes on and bills it: a token for each 400 bytes."""
    caller = start("simple")
    fake_openai.behaviour = behaviour
    params = {"audio_base64": base64.b64encode(bytes(8_000)).decode(), "mime_type": "audio/webm"}
    headers = {"Authorization": f"Bearer {caller.secret}"}
    with suppress(requests.Timeout):
        body = {"type": "input.transcribe", "params": params}
        requests.post(f"{caller.url}/api/chatkit", json=body, headers=headers, timeout=0.5 if row else 30)
    assert fake_openai.received
    time.sleep(0 if row else 0.3)
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == ([row] if row else []))


def test_database_that_cannot_store_usage(start: Start, fake_openai: FakeOpenAI, database: str, recorder: Recorder) -> None:
    caller = start("simple", DATABASE_URL=database)
    with create_engine(database).begin() as connection:
        connection.execute(text("DROP TABLE chat_usage"))
    before = len(recorder.lines)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Hello"])
    wait_for(lambda: any("usage could not be stored (OperationalError)" in line for line in recorder.lines[before:]))
    assert texts(caller.say(thread_id, "Again")) == ["Hello"]


def test_response_does_not_wait_until_usage_is_stored(start: Start, fake_openai: FakeOpenAI, postgres: str) -> None:
    address = new_postgres_database(postgres)
    caller = start("simple", DATABASE_URL=address)
    fake_openai.behaviour = streaming(says("Hello"))
    with psycopg.connect(address) as connection:
        connection.execute("LOCK TABLE chat_usage")
        began = time.monotonic()
        thread_id, events = caller.create("Hello")
        assert texts(events) == ["Hello"]
        assert texts(caller.say(thread_id, "Again")) == ["Hello"]
        assert time.monotonic() - began < 4.8
    wait_for(lambda: used(address.replace("postgresql://", "postgresql+psycopg://")) == [requests_of("Simple", 2)])


def test_usage_is_stored_before_a_shutdown_ends(engine: Engine) -> None:
    store = SqlStore(engine, IMAGE_URLS)
    usage = UsageStore(engine, store.transactions.submit, None)
    going_on = threading.Event()
    for _ in range(5):  # all threads of the store are busy
        store.transactions.submit(lambda _connection: going_on.wait(10), 10)
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


def test_name_of_an_agent_may_be_long(engine: Engine) -> None:
    usage = UsageStore(engine, SqlStore(engine, IMAGE_URLS).transactions.submit, None)
    meter = usage.meter("anonymous:ada")
    meter.add("x" * 300, 1, Usage(total_tokens=7))
    meter.close()
    wait_for(lambda: [row[0] for row in used(engine.url.render_as_string(hide_password=False))] == ["x" * 255])


def test_amounts_that_no_call_has(engine: Engine) -> None:
    """Negative ones would give a user tokens back, and too large ones would not be stored."""
    usage = UsageStore(engine, SqlStore(engine, IMAGE_URLS).transactions.submit, tokens_per_day=2 * MAX_AMOUNT)
    reports = [(5, 2, 7), (-50, -(10**30), -50), (10**30, 2**63, 10**30), (None, 2.5, "7")]
    for number, (given, written, total) in enumerate(reports):
        meter = usage.meter("anonymous:ada")
        meter.add(str(number), 1, SimpleNamespace(input_tokens=given, output_tokens=written, total_tokens=total))
        meter.close()
        usage.check("anonymous:ada")
    assert sorted(used(engine.url.render_as_string(hide_password=False))) == [
        ("0", 1, 5, 2, 7),
        ("1", 1, 0, 0, 0),
        ("2", 1, MAX_AMOUNT, MAX_AMOUNT, MAX_AMOUNT),
        ("3", 1, 0, 0, 0),
    ]


def test_usage_of_a_deleted_user_is_not_stored(engine: Engine) -> None:
    store = SqlStore(engine, IMAGE_URLS)
    usage = UsageStore(engine, store.transactions.submit, None)
    sessions = [SessionStore(engine, 600).issue(User("anonymous", name)).session_id for name in ("ada", "eve")]
    with engine.begin() as connection:
        connection.execute(delete(SessionRow).where(SessionRow.id == sessions[0]))
    for name, session_id in zip(("ada", "eve"), sessions, strict=True):
        meter = usage.meter(f"anonymous:{name}", session_id)
        meter.add(name, 1, Usage(total_tokens=7))
        meter.close()
    wait([store.transactions.submit(lambda _connection: None, 5) for _ in range(5)])
    wait_for(lambda: [row[0] for row in used(engine.url.render_as_string(hide_password=False))] == ["eve"])


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
def test_limit_of_tokens_per_day(
    start: Start, fake_openai: FakeOpenAI, database: str, who: str, limit: int, turns: int
) -> None:
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
def test_every_request_that_calls_a_model_is_limited(start: Start, fake_openai: FakeOpenAI, type_: str) -> None:
    caller = start("simple", CHATKIT_TOKENS_PER_DAY="1")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    params: dict[str, dict[str, Any]] = {
        "input.transcribe": {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"},
        "threads.sync_custom_action": {"thread_id": thread_id, "action": {"type": "press", "payload": {}}},
    }
    assert caller.post(type_, **params[type_]).status_code == 429


def test_limit_begins_again_the_next_day(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start("simple", DATABASE_URL=database, CHATKIT_TOKENS_PER_DAY="2")
    fake_openai.behaviour = streaming(says("Hello"))
    assert turn(caller).status_code == 200
    assert turn(caller).status_code == 429
    with create_engine(database).begin() as connection:
        connection.execute(update(UsageRow).values(day=today() - timedelta(days=1)))
    assert turn(caller).status_code == 200
    assert turn(caller).status_code == 429


def test_limit_is_for_all_processes(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
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


def test_database_that_cannot_add_usage_up(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    """A limit that can't be checked is no reason to spend more."""
    caller = start("simple", DATABASE_URL=database, CHATKIT_TOKENS_PER_DAY="2")
    with create_engine(database).begin() as connection:
        connection.execute(text("DROP TABLE chat_usage"))
    answer = turn(caller)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert fake_openai.received == []
