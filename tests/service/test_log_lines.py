"""The log of a service: no warning of a package forges a line, and the search for secrets covers it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.applications import MakeApp
from tests.support.chat import Caller
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI
from tests.support.leaks import Recorder
from tests.support.service import Service, output


@pytest.mark.parametrize("environment", ["development", "production"])
def test_sdk_warning_cannot_forge_a_line(environment: str, tmp_path: Path) -> None:
    """The SDK's warning about structured input for an unknown question."""
    with Service(
        CHATKIT_BACKEND="selfhosted", CHATKIT_ENV=environment, DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db"
    ) as service:
        for name in ("x\n2026-11-23 12:00:00.000 ERROR   forged", "x\x1b[31m", "z" * 50_000):
            caller = Caller(service.url)
            thread, events = caller.create("ask me a question")
            item = next(
                event.item for event in events if getattr(getattr(event, "item", None), "type", "") == "structured_input"
            )
            answers = {"answers": {name: {"values": ["Tea"]}}}
            list(caller.stream("threads.add_structured_input", thread_id=thread, item_id=item.id, input=answers))
    lines = service.log.splitlines()
    assert len([line for line in lines if "unknown question id(s)" in line]) == 3
    assert not [line for line in lines if "ERROR   forged" in line and "unknown question" not in line]
    assert "\x1b" not in service.log
    assert max(map(len, lines)) < 3_000


def test_search_covers_all_logs(make_app: MakeApp, recorder: Recorder, fake_openai: FakeOpenAI) -> None:
    """Both from applications in this process and from services in their own processes."""
    for backend, session_id in (("hosted", r"cksess_[0-9a-f]{48}"), ("selfhosted", r"ses_[A-Za-z0-9_-]{32}")):
        before = len(recorder.lines)
        make_app(CHATKIT_BACKEND=backend).test_client().post(ENDPOINT, buffered=True)
        assert re.search(session_id, "\n".join(recorder.lines[before:]))
    with Service(OPENAI_API_KEY=API_KEY, CHATKIT_WORKFLOW_ID=WORKFLOW_ID, CHATKIT_API_BASE=fake_openai.url) as running:
        assert running.create_session().status_code == 200
    assert re.search(r"cksess_[0-9a-f]{48}", output[-1])
