"""Active runs: a response goes on without its reader, is stopped from any process, and ends once."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from agents import GuardrailFunctionOutput
from chatkit.store import NotFoundError
from chatkit.types import AssistantMessageContent, AssistantMessageItem, ThreadMetadata
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from chatkit.backends.selfhosted.chat import active_run_store, demo, runs
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database import engine
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.identity.user import User
from chatkit.web.errors import ServiceBusy
from tests.support.active_runs import begin, reply, state, stop
from tests.support.agents_under_test import nothing_forbidden
from tests.support.applications import Start
from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI, failing
from tests.support.leaks import Recorder
from tests.support.responses_api import calls, says, streaming, thinks
from tests.support.store import ADA, EVE, IMAGE_URLS, MOMENT, new_thread, of_run, run
from tests.support.waiting import wait_for

ACTION = {"type": "press", "payload": {}}
WHOLE = "CHATKIT_AGENT."
"""The end of the demo's response."""


def message(thread_id: str, item_id: str) -> AssistantMessageItem:
    content = [AssistantMessageContent(text=item_id)]
    return AssistantMessageItem(id=item_id, thread_id=thread_id, created_at=MOMENT, content=content)


async def fits() -> None:
    """The check of a request that still fits its thread."""


@pytest.fixture
def sql(database: str) -> SqlStore:
    return SqlStore(open_database(database), IMAGE_URLS)


class TestRuns:
    """``Runs`` of two processes with one database."""

    @staticmethod
    def check(work: Callable[[Runs, Runs], Coroutine[Any, Any, None]], sql: SqlStore) -> None:
        async def both() -> None:
            here, elsewhere = Runs(sql.active_runs), Runs(SqlStore(sql.transactions.engine, IMAGE_URLS).active_runs)
            watching = [asyncio.create_task(each.watch()) for each in (here, elsewhere)]
            try:
                await work(here, elsewhere)
            finally:
                for task in watching:
                    task.cancel()

        asyncio.run(both())

    @staticmethod
    async def answer(of: Runs, thread_id: str, mine: ChatContext, saving: float = 0) -> None:
        """A response, which takes a while to save its text when it is stopped."""
        try:
            await of.begin_alone(thread_id, mine, fits)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(saving)
            raise
        finally:
            await of.end(mine, interrupted=False)

    async def begun(self, of: Runs, thread_id: str, saving: float = 0) -> asyncio.Task[None]:
        """Begin the response ``run_1``."""
        mine = of_run("run_1")
        task = asyncio.create_task(self.answer(of, thread_id, mine, saving))
        await mine.run_is_active.wait()
        return task

    def test_outage_is_logged_once(self, sql: SqlStore, monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
        monkeypatch.setattr(runs, "POLL_SECONDS", 0)
        rounds = iter([OSError, OSError, None, OSError, ValueError, ValueError])
        over = asyncio.Event()

        async def check_runs(_self: Runs) -> None:
            if (failure := next(rounds, over)) is over:
                over.set()
            elif failure:
                raise failure  # type: ignore[misc]

        monkeypatch.setattr(Runs, "_check", check_runs)
        before = len(recorder.lines)

        async def watch() -> None:
            watching = asyncio.create_task(Runs(sql.active_runs).watch())
            await over.wait()
            watching.cancel()

        asyncio.run(watch())
        logged = [line for line in recorder.lines[before:] if "could not be checked" in line]
        assert ["OSError" in line for line in logged] == [True, True, False]

    @pytest.mark.parametrize("is_here", [True, False])
    def test_stopped_within_a_second(self, sql: SqlStore, monkeypatch: pytest.MonkeyPatch, is_here: bool) -> None:
        thread_id = new_thread(sql)
        if is_here:
            monkeypatch.setattr(runs, "POLL_SECONDS", 60)

        async def work(here: Runs, elsewhere: Runs) -> None:
            task = await self.begun(elsewhere, thread_id)
            with pytest.raises(NotFoundError):
                await here.stop("run_1", EVE.user)
            began = time.monotonic()
            await (elsewhere if is_here else here).stop("run_1", ADA.user)
            await asyncio.wait({task})
            assert time.monotonic() - began < 1
            assert await here.of_thread(thread_id, ADA.user) is None

        self.check(work, sql)

    @pytest.mark.parametrize("what", ["delete", "transfer"])
    def test_run_without_its_row_is_stopped(self, sql: SqlStore, what: str) -> None:
        thread_id = new_thread(sql)

        async def work(here: Runs, _elsewhere: Runs) -> None:
            task = await self.begun(here, thread_id)
            if what == "delete":
                await sql.delete_thread(thread_id, ADA)
            else:
                sessions = SessionStore(sql.transactions.engine, ttl=600)
                await asyncio.to_thread(sessions.transfer_conversations, User("anonymous", "ada"), User("user", "ada"))
            _, pending = await asyncio.wait({task}, timeout=5)
            assert not pending

        self.check(work, sql)

    def test_run_that_stalled_and_was_replaced_stores_nothing(self, sql: SqlStore) -> None:
        thread_id = new_thread(sql)
        mine, others = of_run("run_1"), of_run("run_2")

        async def work() -> list[str]:
            here = Runs(sql.active_runs)
            await here.begin_alone(thread_id, mine, fits)
            thread = await sql.load_thread(thread_id, mine)
            await sql.save_item(thread_id, message(thread_id, "before"), mine)
            await sql.save_drafts([(mine, message(thread_id, "draft"))])
            await sql.active_runs.end(mine, interrupted=True)  # stands for the missing heartbeats
            await Runs(sql.active_runs).begin_alone(thread_id, others, fits)
            with pytest.raises(NotFoundError):
                await sql.save_item(thread_id, message(thread_id, "after"), mine)
            thread.title = "after"
            with pytest.raises(NotFoundError):
                await sql.save_thread(thread, mine)
            await sql.save_drafts([(mine, message(thread_id, "after"))])
            await sql.save_item(thread_id, message(thread_id, "other"), others)
            assert (await sql.load_thread(thread_id, ADA)).title is None
            return [item.id for item in (await sql.load_thread_items(thread_id, None, 10, "asc", ADA)).data]

        assert run(work()) == ["before", "draft", "other"]

    @pytest.mark.parametrize(
        ("error", "kept"), [(OperationalError("", None, Exception("locked")), 1), (OSError("can't be stored"), 0)]
    )
    def test_end_is_stored_when_the_database_works_again(
        self, sql: SqlStore, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: int
    ) -> None:
        """With what the response has shown, unless the error is about that."""
        thread_id, store_end, failures = new_thread(sql), sql.active_runs.end, [1, 2]

        async def end(context: ChatContext, **ending: Any) -> None:
            if failures:
                failures.pop()
                raise error
            await store_end(context, **ending)

        monkeypatch.setattr(sql.active_runs, "end", end)

        async def work(here: Runs, _elsewhere: Runs) -> None:
            mine = of_run("run_1")
            await here.begin_alone(thread_id, mine, fits)
            mine.drafts["msg_1"] = message(thread_id, "msg_1")
            await here.end(mine, interrupted=False)
            assert (await here.of_thread(thread_id, ADA.user)).id == "run_1"  # type: ignore[union-attr]
            async with asyncio.timeout(5):
                while await here.of_thread(thread_id, ADA.user):
                    await asyncio.sleep(0.1)

        self.check(work, sql)
        assert len(run(sql.load_thread_items(thread_id, None, 10, "asc", ADA)).data) == kept

    def test_what_goes_on_after_a_run_can_be_stored(self, sql: SqlStore) -> None:
        thread_id, mine = new_thread(sql), of_run("run_1")

        async def work() -> None:
            runs_here = Runs(sql.active_runs)
            await runs_here.begin_alone(thread_id, mine, fits)
            await runs_here.end(mine, interrupted=False)
            await sql.save_item(thread_id, message(thread_id, "later"), mine)

        run(work())

    def test_next_run_waits_until_the_stopped_one_has_saved_its_text(self, sql: SqlStore) -> None:
        thread_id = new_thread(sql)

        async def work(here: Runs, elsewhere: Runs) -> None:
            first = await self.begun(here, thread_id, saving=1)
            mine = of_run("run_2")
            await elsewhere.begin_alone(thread_id, mine, fits)
            assert first.cancelled()
            assert (await here.of_thread(thread_id, ADA.user)).id == "run_2"  # type: ignore[union-attr]
            await elsewhere.end(mine, interrupted=False)

        self.check(work, sql)

    def test_run_that_ends_by_itself_is_not_stopped_by_the_next(self, sql: SqlStore) -> None:
        thread_id = new_thread(sql)

        async def work(here: Runs, elsewhere: Runs) -> None:
            short, mine = of_run("run_1"), of_run("run_2")

            async def answer() -> None:
                await here.begin_alone(thread_id, short, fits)
                await asyncio.sleep(0.2)
                await here.end(short, interrupted=False)

            first = asyncio.create_task(answer())
            await short.run_is_active.wait()
            await elsewhere.begin_alone(thread_id, mine, fits)
            await first  # it was not cancelled
            await elsewhere.end(mine, interrupted=False)

        self.check(work, sql)

    def test_wait_for_a_run_that_does_not_end_is_limited(self, sql: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "TAKEOVER_SECONDS", 1.0)
        thread_id = new_thread(sql)

        async def work(here: Runs, elsewhere: Runs) -> None:
            first = await self.begun(here, thread_id, saving=3)
            with pytest.raises(ServiceBusy):
                await elsewhere.begin_alone(thread_id, of_run("run_2"), fits)
            await asyncio.wait({first})

        self.check(work, sql)

    def test_run_that_is_cancelled_while_it_begins_leaves_no_row(self, sql: SqlStore, database: str) -> None:
        thread_id = new_thread(sql)

        async def work(here: Runs, _elsewhere: Runs) -> None:
            with create_engine(database).connect() as other:  # a writer, which the run has to wait for
                other.execute(text("UPDATE chat_threads SET used_at = 0"))
                task = asyncio.create_task(self.answer(here, thread_id, of_run("run_1")))
                await asyncio.sleep(0.3)
                began = time.monotonic()
                task.cancel()
                await asyncio.wait({task})
                assert time.monotonic() - began < 2, "it does not wait for the writer"
                other.rollback()
            await asyncio.sleep(1)
            assert await here.of_thread(thread_id, ADA.user) is None

        self.check(work, sql)

    def test_run_that_is_cancelled_while_its_thread_is_created_leaves_no_row(self, sql: SqlStore, database: str) -> None:
        mine = of_run("run_1")
        thread = ThreadMetadata(id=sql.generate_thread_id(mine), created_at=MOMENT)

        async def work(_here: Runs, _elsewhere: Runs) -> None:
            with create_engine(database).connect() as other:  # a writer, which the new thread has to wait for
                lock = "LOCK TABLE chat_active_runs" if "postgresql" in database else "UPDATE chat_threads SET used_at = 0"
                other.execute(text(lock))
                task = asyncio.create_task(sql.save_thread(thread, mine))
                await asyncio.sleep(0.3)
                task.cancel()
                await asyncio.wait({task})
                other.rollback()
            await asyncio.sleep(1)
            assert await sql.load_thread(thread.id, ADA), "it was too late to prevent that"
            assert await sql.active_runs.load(thread.id, ADA.user) is None

        self.check(work, sql)

    def test_heartbeats_keep_a_run_active(self, sql: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.5)
        monkeypatch.setattr(active_run_store, "STALE_SECONDS", 3)
        thread_id = new_thread(sql)

        async def work(here: Runs, elsewhere: Runs) -> None:
            task = await self.begun(here, thread_id)
            await asyncio.sleep(5)
            assert (await elsewhere.of_thread(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
            task.cancel()
            await asyncio.wait({task})

        self.check(work, sql)


class TestReaderLeaves:
    @pytest.mark.parametrize(
        ("setting", "header", "goes_on"),
        [
            ("", "", False),
            ("", "continue", True),
            ("continue", "", True),
            ("continue", "stop", False),
            ("stop", "what?", False),
        ],
    )
    def test_request_or_setting_decides(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, setting: str, header: str, goes_on: bool
    ) -> None:
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0.08)
        caller = start(OPENAI_API_KEY="", CHATKIT_ON_DISCONNECT=setting)
        thread_id, _, reader = begin(caller, on_disconnect=header)
        assert state(caller, thread_id) == "active"
        reader.close()
        wait_for(lambda: state(caller, thread_id) is None)
        assert reply(caller, thread_id).startswith("I am the demo")
        assert reply(caller, thread_id).endswith(WHOLE) == goes_on

    @pytest.mark.slow
    def test_run_without_a_reader_writes_nowhere(self, start: Start) -> None:
        """The response has 50 MB, of which a buffer would hold 64 KiB."""
        caller = start("tests.support.servers_under_test:Speaking")
        thread_id, run_id, reader = begin(caller, "long", words=1)
        reader.close()
        wait_for(lambda: len(reply(caller, thread_id)) > 5_000_000, 15)
        stop(caller, run_id)
        wait_for(lambda: state(caller, thread_id) is None)

    def test_limits_hold_without_a_reader(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 1)
        caller = start(OPENAI_API_KEY="", CHATKIT_TURN_SECONDS="5")
        left = [begin(caller, words=1) for _ in range(5)]
        for _, _, reader in left:
            reader.close()
        time.sleep(0.5)
        assert caller.post("threads.create", input=user_input("One more")).status_code == 429
        wait_for(lambda: all(state(caller, thread_id) == "interrupted" for thread_id, _, _ in left), 10)
        assert caller.post("threads.create", input=user_input("progress")).status_code == 200

    def test_failed_message_is_not_to_be_repeated_in_a_locked_thread(self, start: Start) -> None:
        _, events = start("tests.support.servers_under_test:Failing").create("locks")
        assert errors(events) == [("stream.error", None, False)]

    def test_failed_action_is_not_to_be_repeated(self, start: Start) -> None:
        """The page would retry the message before, and delete its whole response."""
        caller = start("tests.support.servers_under_test:Failing")
        thread_id, _ = caller.create("fine")
        events = list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))
        assert errors(events) == [("stream.error", None, False)]
        assert state(caller, thread_id) is None

    @pytest.mark.parametrize(("said", "ends_as"), [("error", "interrupted"), ("Hello", None)])
    def test_retryable_error_is_kept_for_the_page(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, said: str, ends_as: str | None
    ) -> None:
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0.02)
        caller = start(OPENAI_API_KEY="")
        thread_id, _, reader = begin(caller, said, words=1)
        reader.close()
        wait_for(lambda: state(caller, thread_id) != "active")
        assert state(caller, thread_id) == ends_as
        message = caller.items(thread_id, order="asc").data[0]
        list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
        assert state(caller, thread_id) == ends_as

    def test_failed_first_message_is_kept_for_the_page(self, start: Start, fake_openai: FakeOpenAI) -> None:
        """After the error, OpenAI's server sends the thread's title, which is the message's first words."""
        caller = start("simple")
        fake_openai.behaviour = failing(500, "server_error")
        thread_id, events = caller.create("Hello")
        assert [event.type for event in events][-2:] == ["error", "thread.updated"]
        assert state(caller, thread_id) == "interrupted"


class TestDatabaseIsAway:
    """From the middle of a response to after its end."""

    @pytest.fixture(autouse=True)
    def _short_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "WAIT_SECONDS", 1)

    @pytest.fixture
    def caller(self, start: Start, fake_openai: FakeOpenAI) -> Caller:
        fake_openai.behaviour = streaming(says("One two three", pause=0.2), says("Four"))
        return start("simple")

    @pytest.fixture
    def other(self, tmp_path: Path) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(tmp_path / "chatkit.db", isolation_level=None)) as connection:
            yield connection

    @staticmethod
    def fail(caller: Caller, other: sqlite3.Connection, words: int = 2) -> str:
        """Lock the database, until the response has ended with an error. Return the thread."""
        events: list[Any] = []
        for event in caller.stream("threads.create", input=user_input("Hello")):
            events.append(event)
            if len(deltas(events)) == words and not other.in_transaction:
                other.execute("BEGIN IMMEDIATE")
        assert len(errors(events)) == 1
        return str(events[0].thread.id)

    def test_text_is_stored_with_the_end(self, caller: Caller, other: sqlite3.Connection) -> None:
        thread_id = self.fail(caller, other)
        other.execute("COMMIT")
        wait_for(lambda: state(caller, thread_id) == "interrupted")
        assert reply(caller, thread_id) == "One two three"
        message = caller.items(thread_id).data[1]
        assert texts(list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))) == ["Four"]
        assert [item.content[0].text for item in caller.items(thread_id, order="asc").data] == ["Hello", "Four"]

    def test_text_is_kept_if_the_user_goes_on_at_once(self, caller: Caller, other: sqlite3.Connection) -> None:
        thread_id = self.fail(caller, other)
        time.sleep(1)
        other.execute("COMMIT")
        assert texts(caller.say(thread_id, "And then?")) == ["Four"]
        kept = [item.content[0].text for item in caller.items(thread_id, order="asc").data]
        assert kept == ["Hello", "One two three", "And then?", "Four"]

    def test_text_is_kept_if_the_reader_leaves_after_the_error(self, caller: Caller, other: sqlite3.Connection) -> None:
        thread_id, _, reader = begin(caller, words=2, on_disconnect="stop")
        other.execute("BEGIN IMMEDIATE")
        next(line for line in reader.lines if b'"error"' in line)
        reader.close()
        time.sleep(1.5)
        other.execute("COMMIT")
        wait_for(lambda: state(caller, thread_id) == "interrupted")
        assert reply(caller, thread_id) == "One two three"

    def test_text_of_a_run_that_was_replaced_is_not_stored(self, caller: Caller, other: sqlite3.Connection) -> None:
        thread_id = self.fail(caller, other)
        other.execute("DELETE FROM chat_active_runs")
        other.execute("COMMIT")
        time.sleep(2.5)
        assert [item.type for item in caller.items(thread_id).data] == ["user_message"]

    def test_refused_text_is_not_stored(
        self, start: Start, fake_openai: FakeOpenAI, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bridge removes items in the order of a set; here, the thought before the message."""

        async def refuse_when_away(*_: Any) -> GuardrailFunctionOutput:
            while not other.in_transaction:
                await asyncio.sleep(0.02)
            return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

        monkeypatch.setattr(nothing_forbidden, "guardrail_function", refuse_when_away)

        class Ordered(list[Any]):
            add = list.append

        monkeypatch.setattr("chatkit.agents.set", Ordered, raising=False)
        fake_openai.behaviour = streaming([*thinks("Hm"), *says("One two three four five six", pause=0.15)])
        caller = start("guarded")
        thread_id = self.fail(caller, other, words=1)
        other.execute("COMMIT")
        time.sleep(2.5)
        assert [item.type for item in caller.items(thread_id).data] == ["workflow", "user_message"]


class TestWhileARunIsActive:
    """What else can happen in a thread that is being answered."""

    @pytest.fixture
    def caller(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> Caller:
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0.1)
        return start(OPENAI_API_KEY="")

    @staticmethod
    def roles(caller: Caller, thread_id: str) -> list[str]:
        return [item.type.removesuffix("_message") for item in caller.items(thread_id, order="asc").data]

    def test_new_message_stops_it_and_keeps_its_text(self, caller: Caller) -> None:
        thread_id, _, reader = begin(caller, words=8)
        reader.close()
        assert texts(caller.say(thread_id, "widget")) == []
        assert self.roles(caller, thread_id) == ["user", "assistant", "user", "widget"]
        assert reply(caller, thread_id).startswith("I am the demo")
        assert not reply(caller, thread_id).endswith(WHOLE)

    def test_message_that_waited_is_refused_if_the_thread_was_locked_meanwhile(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        thread_id, _, reader = begin(caller, words=8)
        reader.close()
        begun = Runs.begun

        def lock(self: Runs, context: ChatContext) -> None:
            begun(self, context)
            with sqlite3.connect(tmp_path / "chatkit.db") as connection:
                connection.execute("""UPDATE chat_threads SET data = json_set(data, '$.status', json('{"type":"locked"}'))""")

        monkeypatch.setattr(Runs, "begun", lock)
        refused = caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("And?"))
        assert (refused.status_code, refused.json()["code"]) == (403, "thread_not_active")
        assert self.roles(caller, thread_id) == ["user", "assistant"]
        assert state(caller, thread_id) is None

    @pytest.mark.parametrize(("said", "is_still"), [("Hello", "active"), ("error", "interrupted")])
    @pytest.mark.parametrize(
        ("type_", "status", "params"),
        [
            ("threads.add_client_tool_output", 400, {"result": {}}),
            ("threads.add_structured_input", 400, {"item_id": "of the user", "input": {"answers": {}}}),
            ("threads.add_structured_input", 404, {"item_id": "msg_unknown", "input": {"answers": {}}}),
            ("threads.retry_after_item", 400, {"item_id": "of the assistant"}),
            ("threads.retry_after_item", 404, {"item_id": "msg_unknown"}),
        ],
    )
    def test_refused_request_changes_nothing(
        self, caller: Caller, said: str, is_still: str, type_: str, status: int, params: dict[str, Any]
    ) -> None:
        """For example, a second tab sends the output of a tool again."""
        thread_id, _, reader = begin(caller, said, words=1)
        reader.close()
        wait_for(lambda: state(caller, thread_id) == is_still)
        wait_for(lambda: len(caller.items(thread_id).data) == 2)
        ids = {f"of the {item.type.removesuffix('_message')}": item.id for item in caller.items(thread_id).data}
        sent = {**params, "item_id": ids.get(params.get("item_id", ""), params.get("item_id"))}
        assert caller.post(type_, thread_id=thread_id, **sent).status_code == status
        assert state(caller, thread_id) == is_still
        if is_still == "active":
            wait_for(lambda: state(caller, thread_id) is None, 10)
            assert reply(caller, thread_id).endswith(WHOLE)

    def test_output_of_a_client_tool_that_is_sent_twice_at_once(self, start: Start, fake_openai: FakeOpenAI) -> None:
        """One is refused, and does not stop the response to the other."""
        caller = start("with_page")
        fake_openai.behaviour = streaming(calls("ask_page", question="?"), says("One two three four", pause=0.3))
        thread_id, _ = caller.create("Hello")
        tabs = [Caller(caller.url), Caller(caller.url)]
        for tab in tabs:
            tab.secret = caller.secret
        with ThreadPoolExecutor(2) as pool:
            sent = list(pool.map(lambda tab: tab.post("threads.add_client_tool_output", thread_id=thread_id, result={}), tabs))
        accepted, refused = sorted(sent, key=lambda response: response.status_code)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request_body")
        assert accepted.text.count("thread.item.done") == 1
        assert caller.items(thread_id).data[0].content[0].text == "One two three four"

    def test_late_output_of_a_client_tool_is_refused(self, start: Start, fake_openai: FakeOpenAI) -> None:
        """The user has gone on meanwhile, and is being answered."""
        caller = start("with_page")
        fake_openai.behaviour = streaming(calls("ask_page", question="?"), says("One two three four", pause=0.3))
        thread_id, _ = caller.create("Hello")
        stream = caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Never mind"))
        events = [next(event for event in stream if deltas([event]))]
        tab = Caller(caller.url)
        tab.secret = caller.secret
        assert tab.post("threads.add_client_tool_output", thread_id=thread_id, result={}).status_code == 400
        assert texts([*events, *stream]) == ["One two three four"]

    def test_reader_in_another_tab_gets_the_end_of_its_stream(self, caller: Caller) -> None:
        thread_id, _, reader = begin(caller, words=3)
        other = Caller(caller.url)
        other.secret = caller.secret
        other.say(thread_id, "widget")
        rest = list(reader.lines)
        assert not [line for line in rest if b'"error"' in line]
        assert self.roles(caller, thread_id) == ["user", "assistant", "user", "widget"]

    def test_retry_replaces_its_text(self, caller: Caller) -> None:
        thread_id, _, reader = begin(caller, words=8)
        reader.close()
        message = caller.items(thread_id, order="asc").data[0]
        again = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
        assert texts(again)[0].endswith(WHOLE)
        assert self.roles(caller, thread_id) == ["user", "assistant"]
        assert reply(caller, thread_id).endswith(WHOLE)

    def test_action_is_answered_beside_it(self, caller: Caller) -> None:
        thread_id, _, reader = begin(caller, words=20)
        reader.close()
        assert len(texts(list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION)))) == 1
        assert state(caller, thread_id) == "active"
        wait_for(lambda: state(caller, thread_id) is None, 10)
        assert self.roles(caller, thread_id) == ["user", "assistant", "assistant"]
        assert reply(caller, thread_id).endswith(WHOLE)

    def test_deleting_the_thread_stops_it(self, caller: Caller) -> None:
        left = [begin(caller, words=1) for _ in range(5)]
        for thread_id, _, reader in left:
            reader.close()
            assert caller.post("threads.delete", thread_id=thread_id).status_code == 200
        # All five of the user's places are free again.
        wait_for(lambda: caller.post("threads.create", input=user_input("widget")).status_code == 200, 3)

    def test_run_in_another_thread_goes_on(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0.08)
        first, _, reader = begin(caller, words=1)
        reader.close()
        second, _, reader = begin(caller, words=1)
        reader.close()
        assert [state(caller, thread_id) for thread_id in (first, second)] == ["active", "active"]
        wait_for(lambda: state(caller, first) is None and state(caller, second) is None, 30)
        assert [reply(caller, thread_id).endswith(WHOLE) for thread_id in (first, second)] == [True, True]

    def test_end_of_the_session_does_not_stop_it(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 0.03)
        listed = caller.http.post(f"{caller.url}/api/chatkit/sessions", timeout=30).json()["data"]
        caller.secret = listed["client_secret"]
        thread_id, _, reader = begin(caller, words=1)
        reader.close()
        assert caller.http.delete(f"{caller.url}/api/chatkit/sessions/{listed['session_id']}", timeout=30).status_code == 200
        assert caller.post("threads.list").status_code == 401
        caller.refresh()
        assert state(caller, thread_id) == "active"
        wait_for(lambda: state(caller, thread_id) is None, 10)
        assert reply(caller, thread_id).endswith(WHOLE)

    def test_two_messages_at_once(self, caller: Caller) -> None:
        """One of them is answered last, and the text of the others is kept."""
        thread_id, _, reader = begin(caller, words=2)
        reader.close()

        def say(said: str) -> list[Any]:
            tab = Caller(caller.url)
            tab.secret = caller.secret
            return tab.say(thread_id, said)

        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(say, ["One", "Two"]))
        assert sum(any(text.endswith(WHOLE) for text in texts(events)) for events in both) == 1
        roles = self.roles(caller, thread_id)
        assert (roles[:2], sorted(roles[2:])) == (["user", "assistant"], ["assistant", "user", "user"]) or roles == [
            "user",
            "assistant",
        ] * 3
