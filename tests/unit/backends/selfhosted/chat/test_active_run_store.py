"""The rows of active runs."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from chatkit.store import NotFoundError
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import active_run_store
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.identity.user import User
from tests.support.store import ADA, EVE, IMAGE_URLS, message, new_thread, of_run, question, run


@pytest.fixture
def sql(database: str) -> SqlStore:
    return SqlStore(open_database(database), IMAGE_URLS)


def test_thread_has_one_active_run(sql: SqlStore) -> None:
    thread_id, other = new_thread(sql), new_thread(sql)
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None
    assert run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True)) == []
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == ["run_1"]
    assert run(sql.active_runs.begin(other, of_run("run_3"), alone=True)) == []
    active = run(sql.active_runs.load(thread_id, ADA.user))
    assert active
    assert (active.id, active.is_active, abs(active.started_at - time.time()) < 5) == ("run_1", True, True)
    run(sql.active_runs.end(of_run("run_1"), interrupted=False))
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == []


def test_run_without_heartbeats_is_interrupted_and_replaced(sql: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    thread_id, now = new_thread(sql), int(time.time())
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    monkeypatch.setattr("time.time", lambda: now + active_run_store.STALE_SECONDS - 2)
    run(sql.active_runs.beat(["run_1"], [ADA.user]))
    monkeypatch.setattr("time.time", lambda: now + 2 * active_run_store.STALE_SECONDS - 4)
    assert run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == ["run_1"]
    monkeypatch.setattr("time.time", lambda: now + 2 * active_run_store.STALE_SECONDS)
    assert not run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    with pytest.raises(NotFoundError):
        run(sql.active_runs.stop("run_1", ADA.user))
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == []
    assert run(sql.active_runs.find_active(["run_1", "run_2"], [ADA.user])) == {("run_2", ADA.user)}
    run(sql.active_runs.end(of_run("run_1"), interrupted=False))  # of the process that was only slow
    assert run(sql.active_runs.load(thread_id, ADA.user)).id == "run_2"  # type: ignore[union-attr]


def test_run_with_a_heartbeat_in_the_future_does_not_block_its_thread(sql: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    thread_id, now = new_thread(sql), int(time.time())
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    monkeypatch.setattr("time.time", lambda: now - 5)
    assert run(sql.active_runs.load(thread_id, ADA.user)).is_active, "clocks may differ by seconds"  # type: ignore[union-attr]
    monkeypatch.setattr("time.time", lambda: now - 3600)
    assert not run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == []
    assert run(sql.active_runs.load(thread_id, ADA.user)).id == "run_2"  # type: ignore[union-attr]


def test_stopped_run_whose_process_has_died_is_not_to_be_repeated(sql: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    thread_id, now = new_thread(sql), int(time.time())
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    run(sql.active_runs.stop("run_1", ADA.user))
    assert run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    monkeypatch.setattr("time.time", lambda: now + active_run_store.STALE_SECONDS + 2)
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None


def test_run_marked_as_interrupted_is_replaced(sql: SqlStore) -> None:
    thread_id = new_thread(sql)
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    run(sql.active_runs.end(of_run("run_1"), interrupted=True))
    run(sql.active_runs.beat(["run_1"], [ADA.user]))  # a heartbeat that waited for the database meanwhile
    assert not run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == []


def test_interrupted_run_that_a_retry_does_not_repeat_is_not_shown(sql: SqlStore) -> None:
    thread_id, action = new_thread(sql), replace(of_run("run_1"), is_repeatable=False)
    run(sql.active_runs.begin(thread_id, action, alone=False))
    assert run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    run(sql.active_runs.end(action, interrupted=True))
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None
    run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=False))
    assert run(sql.active_runs.load(thread_id, ADA.user)).id == "run_2"  # type: ignore[union-attr]


def test_run_is_to_be_repeated_once_its_message_is_stored(sql: SqlStore) -> None:
    """Until then, a retry would repeat the message before it, and delete the reply to that."""
    mine = replace(of_run("run_1"), brings_message=True)
    thread_id = new_thread(sql, mine)
    run(sql.active_runs.end(mine, interrupted=True))
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None
    run(sql.active_runs.begin(thread_id, mine, alone=True))
    mine.run_is_active.set()
    run(sql.add_thread_item(thread_id, message(thread_id, "msg_1"), mine))
    run(sql.active_runs.end(mine, interrupted=True))
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None
    run(sql.active_runs.begin(thread_id, mine, alone=True))
    run(sql.add_thread_item(thread_id, question(thread_id, "msg_2"), mine))
    run(sql.active_runs.end(mine, interrupted=True))
    assert run(sql.active_runs.load(thread_id, ADA.user)) is not None


def test_action_ends_the_offer_to_repeat(sql: SqlStore) -> None:
    thread_id, action = new_thread(sql), replace(of_run("run_2"), is_repeatable=False)
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    run(sql.active_runs.end(of_run("run_1"), interrupted=True))
    run(sql.active_runs.begin(thread_id, action, alone=False))
    run(sql.active_runs.end(action, interrupted=False))
    assert run(sql.active_runs.load(thread_id, ADA.user)) is None


def test_another_users_run_is_not_found(sql: SqlStore) -> None:
    thread_id = new_thread(sql)
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    attempts: list[Coroutine[Any, Any, Any]] = [
        sql.active_runs.load(thread_id, EVE.user),
        sql.active_runs.stop("run_1", EVE.user),
        sql.active_runs.begin(thread_id, of_run("run_2", EVE.user), alone=True),
        sql.active_runs.begin(new_thread(sql), of_run("run_2", EVE.user), alone=True),
    ]
    for attempt in attempts:
        with pytest.raises(NotFoundError):
            run(attempt)
    run(sql.active_runs.end(of_run("run_1", EVE.user), interrupted=True))
    run(sql.active_runs.end(of_run("run_1", EVE.user), interrupted=False))
    assert run(sql.active_runs.find_active(["run_1"], [EVE.user])) == set()
    assert run(sql.active_runs.find_active(["run_1"], [ADA.user])) == {("run_1", ADA.user)}
    assert run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]


def test_run_beside_another(sql: SqlStore) -> None:
    thread_id = new_thread(sql)
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=False)) == []
    assert sorted(run(sql.active_runs.begin(thread_id, of_run("run_3"), alone=True))) == ["run_1", "run_2"]
    run(sql.active_runs.end(of_run("run_2"), interrupted=True))
    assert run(sql.active_runs.load(thread_id, ADA.user)).id == "run_1"  # type: ignore[union-attr]
    run(sql.active_runs.end(of_run("run_1"), interrupted=False))
    interrupted = run(sql.active_runs.load(thread_id, ADA.user))
    assert interrupted
    assert (interrupted.id, interrupted.is_active) == ("run_2", False)


def test_beginning_a_run_keeps_the_offer_to_repeat_in_another_thread(sql: SqlStore) -> None:
    thread_id, other = new_thread(sql), new_thread(sql)
    run(sql.active_runs.begin(other, of_run("run_1"), alone=True))
    run(sql.active_runs.end(of_run("run_1"), interrupted=True))
    run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True))
    assert run(sql.active_runs.load(other, ADA.user)).id == "run_1"  # type: ignore[union-attr]


def test_run_begins_with_the_thread_that_its_request_creates(sql: SqlStore) -> None:
    mine = of_run("run_1")
    thread_id, later = new_thread(sql, mine), new_thread(sql, mine)
    assert run(sql.active_runs.load(thread_id, ADA.user)).is_active  # type: ignore[union-attr]
    assert run(sql.active_runs.load(later, ADA.user)) is None, "a thread that a tool creates"
    assert run(sql.active_runs.begin(thread_id, of_run("run_2"), alone=True)) == ["run_1"]
    other_request = of_run("run_3")
    run(sql.load_thread(thread_id, other_request))
    assert run(sql.active_runs.load(new_thread(sql, other_request), ADA.user)) is None


def test_begin_in_a_deleted_thread(sql: SqlStore) -> None:
    thread_id = new_thread(sql)
    run(sql.delete_thread(thread_id, ADA))
    with pytest.raises(NotFoundError):
        run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))


def test_maintenance_deletes_rows_after_a_day(sql: SqlStore, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = SessionStore(open_database(database), ttl=600)
    run(sql.active_runs.begin(new_thread(sql), of_run("run_1"), alone=True))
    now = time.time()
    for hours, left in ((23, 1), (25, 0)):
        monkeypatch.setattr("time.time", lambda hours=hours: now + hours * 3600)
        sessions.maintain()
        with create_engine(database).connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM chat_active_runs")).scalar_one() == left


def test_signing_in_interrupts_the_visitors_runs(sql: SqlStore, database: str) -> None:
    thread_id = new_thread(sql)
    run(sql.active_runs.begin(thread_id, of_run("run_1"), alone=True))
    user = User("user", "ada")
    SessionStore(open_database(database), ttl=600).transfer_conversations(User("anonymous", "ada"), user)
    assert not run(sql.active_runs.load(thread_id, user.id)).is_active  # type: ignore[union-attr]
    assert run(sql.active_runs.find_active(["run_1"], [ADA.user])) == set(), "its process stops it"
