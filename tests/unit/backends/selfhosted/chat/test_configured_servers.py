"""The agent or server that a setting names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chatkit.backends.selfhosted.chat.configured_servers import _load
from chatkit.settings import SettingsError
from tests.support import approving_export
from tests.support.applications import MakeApp

PLAIN = "tests.support.servers_under_test:Plain"

DESCRIPTIONS = {
    PLAIN: f"the server {PLAIN}",
    "simple": "the Agents SDK agent 'Simple'",
    "for_user": "the agents that the function",
    "for_claims": "the agents that the function",
    "run_workflow": "the exported workflow",
    "returns_nothing": "the exported workflow",
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_description_of_the_agent(name: str) -> None:
    assert DESCRIPTIONS[name] in _load(name if ":" in name else f"tests.support.agents_under_test:{name}")[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tests.nowhere:agent", "tests.nowhere can't be imported (ModuleNotFoundError"),
        ("tests.support.agents_under_test:nothing", "has no nothing"),
        ("tests.support.agents_under_test:a_number", "is of type int"),
        ("tests.support.agents_under_test:WorkflowInput", "it has to be an Agents SDK Agent"),
        ("tests.support.agents_under_test:in_a_sandbox", "is a SandboxAgent"),
        ("tests.support.agents_under_test:takes_nothing", "takes 0 arguments"),
        ("tests.support.agents_under_test:takes_three", "takes 3 arguments"),
        ("tests.support.agents_under_test:not_async", "not an async function"),
        (
            "tests.support.approving_export:run_workflow",
            "approval_request in tests.support.approving_export approves everything",
        ),
    ],
)
def test_invalid_agent_is_a_setting_error(name: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(name)
    assert str(caught.value).startswith("CHATKIT_AGENT: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import json\njson.loads('')\n", r"JSONDecodeError: .*, chatkit_agent\.py line 2\)"),
        ("x = (\n", r"SyntaxError: .*chatkit_agent\.py, line 1\)"),
    ],
)
def test_place_where_an_import_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "chatkit_agent.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=rf"the module chatkit_agent can't be imported \({words}"):
        _load("chatkit_agent:agent")


@pytest.mark.parametrize("name", ["Processing", "Streaming"])
def test_server_that_handles_requests_itself_is_refused(make_app: MakeApp, name: str) -> None:
    """Its method would never be called."""
    agent = f"tests.support.servers_under_test:{name}"
    with pytest.raises(SettingsError, match=rf"^CHATKIT_AGENT: {name} overrides process\(\)"):
        make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=agent)


@pytest.mark.parametrize("body", ["return False", "return message != ''", "log(message)\n    return True"])
def test_approval_request_that_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    export = Path(approving_export.__file__).read_text()
    (tmp_path / "deciding_export.py").write_text(export.replace("return True", body))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deciding_export", raising=False)
    assert "the exported workflow" in _load("deciding_export:run_workflow")[1]


def test_approval_request_of_a_workflow_that_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "importing.py").write_text("from tests.support.approving_export import run_workflow\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="approving_export approves everything"):
        _load("importing:run_workflow")
