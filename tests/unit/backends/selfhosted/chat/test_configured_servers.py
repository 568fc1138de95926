"""The agent or server that a setting names."""

from __future__ import annotations

import pytest

from chatkit.backends.selfhosted.chat.configured_servers import _load
from chatkit.settings import SettingsError

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
        ("tests.support.agents_under_test:takes_nothing", "takes 0 arguments"),
        ("tests.support.agents_under_test:takes_three", "takes 3 arguments"),
        ("tests.support.agents_under_test:not_async", "not an async function"),
    ],
)
def test_invalid_agent_is_a_setting_error(name: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(name)
    assert str(caught.value).startswith("CHATKIT_AGENT: ")
    assert words in str(caught.value)
