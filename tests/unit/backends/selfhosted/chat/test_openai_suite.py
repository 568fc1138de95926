"""OpenAI's own tests of its ChatKit package, run against this service's store, server and events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import agents
import pytest
from chatkit.store import NotFoundError

from chatkit.backends.selfhosted.chat import events
from chatkit.backends.selfhosted.chat.history import to_agent_input, to_model_input
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.web import errors
from tests.support import openai_suite
from tests.support.openai_suite import Case

TESTS = {"test_store": 30, "test_chatkit_server": 48, "test_agents": 33}

Failure = tuple[type[BaseException], str]  # what the test raises, and the reason

FOREIGN: Failure = (NotFoundError, "another user's thread is not found here; theirs is found, and empty")
NO_SUCH_FILE: Failure = (errors.NotFound, "an attachment that the database does not have is the contract's 404")
OUR_FILES: Failure = (pytest.fail.Exception, "a server without a store of attachments has that of the service")
OWN_IDS: Failure = (AssertionError, "messages and tool calls get our ids, because not every model's ids are unique")

# The tests of theirs that fail here. One that passes, or raises something else, fails the run.
EXPECTED: dict[str, dict[str, Failure]] = {
    "test_store": {
        "TestSqliteStore.test_thread_items_isolation_by_user": FOREIGN,
        "TestSqliteStoreCustomIds.test_thread_items_isolation_by_user": FOREIGN,
    },
    "test_chatkit_server": {
        "test_create_file_without_filestore": OUR_FILES,
        "test_delete_file": NO_SUCH_FILE,
        "test_delete_file_without_filestore": NO_SUCH_FILE,
        "test_delete_thread": (
            errors.NotFound,
            "a deleted thread is the contract's 404, which names no thread",
        ),
        "test_retry_after_item_invalid_item": (
            errors.InvalidRequestBody,
            "a request that does not fit its thread is the contract's 400, not a ValueError",
        ),
        "test_add_structured_input_truncates_extra_single_choice_values": (
            AssertionError,
            "the test's responder adds its unanswered item again: their store raises, ours replaces the item, "
            "because the SDK adds a workflow again when it continues it",
        ),
    },
    "test_agents": {
        "test_client_tool_call_uses_raw_function_call_id": OWN_IDS,
        "test_custom_annotation_conversion_used_by_stream_agent_response": OWN_IDS,
        "test_stream_agent_response_assistant_message_content_types": OWN_IDS,
        "test_stream_agent_response_yields_item_removed_event[0]": OWN_IDS,
        "test_stream_agent_response_yields_item_removed_event[1]": OWN_IDS,
        "test_input_item_converter_to_input_items_mixed": (
            AssertionError,
            "the assistant's messages are given as text; the Agents SDK refuses theirs for the Chat Completions API",
        ),
        "test_input_item_converter_user_input_with_tags_throws_by_default": (
            pytest.fail.Exception,
            "tags are given to the model; theirs raises",
        ),
        "test_input_item_converter_for_hidden_context_with_non_string_content": (
            pytest.fail.Exception,
            "any hidden context is given to the model; theirs raises",
        ),
    },
}


def parameters(module: str) -> list[Any]:
    found = []
    for case in openai_suite.cases(openai_suite.load(module)):
        raises, reason = EXPECTED[module].get(case.name, (None, ""))
        marks = [pytest.mark.xfail(strict=True, raises=raises, reason=reason)] if reason else []
        found.append(pytest.param(case, id=case.name, marks=marks))
    return found


@pytest.mark.parametrize("module", TESTS)
def test_every_test_is_run(module: str) -> None:
    names = [case.name for case in openai_suite.cases(openai_suite.load(module))]
    assert len(names) == TESTS[module]
    assert EXPECTED[module].keys() <= set(names)


@pytest.fixture
def on_our_store(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    engine = open_database(database)
    for module in ("test_store", "test_chatkit_server"):
        monkeypatch.setattr(openai_suite.load(module), "SQLiteStore", openai_suite.store_class(engine))
    yield
    engine.dispose()


@pytest.mark.parametrize("case", parameters("test_store"))
def test_store(case: Case, on_our_store: None) -> None:
    case.run()


@pytest.mark.parametrize("case", parameters("test_chatkit_server"))
def test_server(case: Case, on_our_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = openai_suite.load("test_chatkit_server")
    monkeypatch.setattr(theirs, "make_server", openai_suite.server_maker(theirs))
    case.run()


@pytest.mark.parametrize("case", parameters("test_agents"))
def test_events_and_model_input(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = openai_suite.load("test_agents")

    def our_events(context: Any, result: Any, **converter: Any) -> Any:
        return events.agent_events(context, result, **converter)

    def our_input(items: Any) -> Any:
        listed = items if isinstance(items, list) else [items]
        return to_model_input(listed, listed[-1])  # in their tests the last item is the one to reply to

    agents.set_tracing_disabled(True)  # as in the service; otherwise traces are sent to OpenAI if a key is set
    monkeypatch.setattr(theirs, "stream_agent_response", our_events)
    monkeypatch.setattr(theirs, "simple_to_agent_input", our_input)
    monkeypatch.setattr(theirs.ThreadItemConverter, "to_agent_input", to_agent_input)
    case.run()
