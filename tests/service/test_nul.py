"""NUL and lone surrogates in every field of every chat request. PostgreSQL's text type accepts neither."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chat import Caller, user_input
from tests.support.protocol import PROTOCOL, leaves, replaced
from tests.support.service import Service

IDS = {"thread_id", "item_id", "item_ids", "after", "attachment_id"}
CHARACTERS = {"NUL": "thr_\0x", "surrogate": "\ud800"}


@pytest.fixture(scope="module")
def caller(shared_database: str) -> Iterator[Caller]:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=shared_database, WEB_CONCURRENCY="1") as running:
        yield Caller(running.url)
    assert "unhandled exception" not in running.log


@pytest.fixture(scope="module")
def own(caller: Caller) -> dict[str, str]:
    """The identifiers of a conversation, by their placeholders in PROTOCOL."""
    thread, events = caller.create("show a widget")
    item = next(event.item.id for event in events if event.type == "thread.item.done" and event.item.type == "widget")
    return {"T": thread, "I": item, "A": "atc_1"}


def with_own(template: Any, own: dict[str, str]) -> Any:
    if isinstance(template, dict):
        return {name: with_own(value, own) for name, value in template.items()}
    if isinstance(template, list):
        return [with_own(value, own) for value in template]
    return own.get(template, template) if isinstance(template, str) else template


# The deletion comes last, because the others need the conversation.
CASES = [(type_, path) for type_ in sorted(PROTOCOL, key="threads.delete".__eq__) for path in leaves(PROTOCOL[type_])]


@pytest.mark.parametrize("character", CHARACTERS)
@pytest.mark.parametrize(("type_", "path"), CASES, ids=str)
def test_every_field(caller: Caller, own: dict[str, str], type_: str, path: tuple[Any, ...], character: str) -> None:
    params = replaced(with_own(PROTOCOL[type_], own), path, CHARACTERS[character])
    response = caller.post(type_, **params)
    if character == "surrogate":
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request_body")
    elif path[0] in IDS:
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    elif type_ == "input.transcribe":
        assert (response.status_code, response.json()["code"]) == (500, "openai_api_key_missing")
    else:
        assert response.status_code in (200, 400, 403), response.text


def test_text_with_nul_is_stored_unchanged(caller: Caller) -> None:
    thread, _ = caller.create("progress\0")
    assert caller.items(thread, order="asc").data[0].content[0].text == "progress\0"
    assert caller.post("threads.update", thread_id=thread, title="a\0b").status_code == 200
    assert caller.thread(thread).title == "a\0b"
    assert caller.say(thread, "progress \0 again")[-1].type == "thread.item.done"


def test_nul_in_other_fields_of_a_new_thread(caller: Caller) -> None:
    assert caller.post("threads.create", input={**user_input("progress"), "quoted_text": "\0"}).status_code == 200
    assert caller.post("threads.create", input=user_input("progress", model="\0")).status_code == 400  # it is not listed
