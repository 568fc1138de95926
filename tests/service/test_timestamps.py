"""Timestamps in responses are UTC with ``Z``, independent of the process's time zone and of the version that stored them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.support.chat import Caller, user_input
from tests.support.service import Service

TOKYO, NEW_YORK = "Asia/Tokyo", "America/New_York"
LAST_EVENT = {
    "widget": "thread.item.done",
    "question": "thread.item.done",
    "tool": "thread.item.done",
    "hello": "thread.item.added",
}


def stamps(value: Any) -> list[str]:
    """Return all ``created_at`` in a JSON value."""
    if isinstance(value, dict):
        own = [value["created_at"]] if isinstance(value.get("created_at"), str) else []
        return own + [stamp for inner in value.values() for stamp in stamps(inner)]
    return [stamp for inner in value for stamp in stamps(inner)] if isinstance(value, list) else []


def assert_now(found: list[str]) -> None:
    assert found
    for stamp in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", stamp), stamp
        assert abs(datetime.fromisoformat(stamp) - datetime.now(UTC)) < timedelta(minutes=1)


def send(caller: Caller, type_: str, **params: Any) -> Any:
    """Return the response as JSON; for a stream, a list of its events."""
    response = caller.post(type_, **params)
    assert response.status_code == 200, response.text
    if response.headers["Content-Type"] == "application/json":
        return response.json()
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("zone", [TOKYO, NEW_YORK])
def test_every_response(tmp_path: Path, zone: str) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db", TZ=zone) as service:
        caller = Caller(service.url)
        for word, type_of_reply in LAST_EVENT.items():
            events = send(caller, "threads.create", input=user_input(word))
            assert {"thread.created", "thread.updated", type_of_reply} <= {event["type"] for event in events}
            assert_now(stamps(events))
            thread_id = events[0]["thread"]["id"]
            for type_, params in [
                ("threads.get_by_id", {}),
                ("items.list", {}),
                ("threads.update", {"title": "Renamed"}),
            ]:
                assert_now(stamps(send(caller, type_, thread_id=thread_id, **params)))
        assert_now(stamps(send(caller, "threads.list")))
        widget = send(caller, "threads.create", input=user_input("widget"))
        item = next(event["item"] for event in widget if event.get("item", {}).get("type") == "widget")
        where = {"thread_id": item["thread_id"], "item_id": item["id"], "action": {"type": "demo.press", "payload": {}}}
        assert_now(stamps(send(caller, "threads.sync_custom_action", **where)))


def test_processes_in_different_zones_and_an_older_version(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": address}
    with Service(**variables, TZ=TOKYO) as tokyo:
        caller = Caller(tokyo.url)
        thread_id, _ = caller.create("Hello")
        from_tokyo = send(caller, "threads.get_by_id", thread_id=thread_id)
        with Service(**variables, TZ=NEW_YORK) as new_york:
            caller.url = new_york.url
            assert send(caller, "threads.get_by_id", thread_id=thread_id) == from_tokyo
            caller.say(thread_id, "And here")
            assert_now(stamps(send(caller, "threads.get_by_id", thread_id=thread_id)))
        with create_engine(address).begin() as connection:  # as versions before time zones stored it
            old = text("UPDATE chat_threads SET data = json_set(data, '$.created_at', '2026-11-01T12:00:00.500000')")
            connection.execute(old)
        caller.url = tokyo.url
        assert send(caller, "threads.get_by_id", thread_id=thread_id)["created_at"] == "2026-11-01T12:00:00.500000Z"
