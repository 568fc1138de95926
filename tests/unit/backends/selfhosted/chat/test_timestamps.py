"""Timestamps in responses are UTC. tests/service/test_timestamps.py has processes in other time zones."""

from __future__ import annotations

import json

from tests.support.applications import Start
from tests.support.chat import user_input

SERVERS = "tests.support.servers_under_test"


def test_timestamps_are_in_utc(start: Start) -> None:
    caller = start(f"{SERVERS}:Knowing")
    answer = caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}}).text
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    times = [(event.get("item") or event.get("thread") or {}).get("created_at", "Z") for event in events]
    assert all(moment.endswith("Z") for moment in times)
