"""A run that waits for the user's approval outlives its process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.chat import Caller, errors, texts
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.responses_api import calls, says, streaming
from tests.support.service import Service


def kill(service: Service) -> None:
    """Kill its processes, the master first, which would start another worker."""
    for process in [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children()]:
        process.send_signal(signal.SIGKILL)
    service.process.wait(10)


def pending(caller: Caller, thread_id: str) -> Any:
    """The widget, with its buttons."""
    (widget,) = [item for item in caller.items(thread_id).data if item.type == "widget"]
    return widget if "confirm" in widget.widget.model_dump() else None


@pytest.mark.parametrize("agent", ["careful", "for_user", "boss"])
@pytest.mark.parametrize(("button", "told"), [("confirm", "a.txt is deleted"), ("cancel", "The user rejected this call.")])
def test_kill_while_an_approval_is_pending(tmp_path: Path, fake_openai: FakeOpenAI, agent: str, button: str, told: str) -> None:
    variables = {
        "CHATKIT_BACKEND": "selfhosted",
        "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db",
        "CHATKIT_AGENT": f"tests.support.approving_agents:{agent}",
        "OPENAI_API_KEY": API_KEY,
        "CHATKIT_API_BASE": fake_openai.url,
    }
    deletes = calls("delete_file", path="a.txt")
    clerk = [calls("clerk", input="Delete a.txt"), deletes, says("The clerk is done")]
    fake_openai.behaviour = streaming(*(clerk if agent == "boss" else [deletes]), says("Done"))
    with Service(**variables) as service:
        caller = Caller(service.url)
        thread_id, events = caller.create("Delete a.txt")
        assert errors(events) == []
        before = pending(caller, thread_id)
        kill(service)
    asked = len(fake_openai.received)
    with Service(**variables, PORT=str(service.port)):
        widget = pending(caller, thread_id)
        assert widget == before
        action = widget.widget.model_dump()[button]["action"]
        sent = {"type": action["type"], "payload": action["payload"]}
        events = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=sent))
        assert (errors(events), texts(events)) == ([], ["Done"])
        assert pending(caller, thread_id) is None
    (output,) = [
        item["output"] for item in fake_openai.received[asked].body["input"] if item.get("type") == "function_call_output"
    ]
    assert output == told


def test_kill_while_an_approved_call_is_executed(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """It may have been executed, so it is never executed again."""
    variables = {
        "CHATKIT_BACKEND": "selfhosted",
        "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db",
        "CHATKIT_AGENT": "tests.support.approving_agents:careful",
        "OPENAI_API_KEY": API_KEY,
        "CHATKIT_API_BASE": fake_openai.url,
    }
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), [*says("It"), 30.0], says("Never said"))
    with Service(**variables) as service:
        caller = Caller(service.url)
        thread_id, _ = caller.create("Delete a.txt")
        widget = pending(caller, thread_id)
        action = {"type": "chatkit.approval", "payload": {"approved": True}}
        stream = caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action)
        while next(stream).type != "thread.item.added":
            pass
        kill(service)
    asked = len(fake_openai.received)
    with Service(**variables, PORT=str(service.port)):
        assert pending(caller, thread_id) is None
        events = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action))
        assert (errors(events), texts(events)) == ([], [])
        assert len(fake_openai.received) == asked
