"""NUL and lone surrogates, in every field of every request of the chat. PostgreSQL's text takes neither."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chat import Caller, user_input
from tests.support.postgres import new_postgres_database
from tests.support.protocol import PROTOCOL, leaves, replaced
from tests.support.service import Service

IDS = {"thread_id", "item_id", "item_ids", "after", "attachment_id"}
ODD = {"NUL": "thr_\0x", "surrogate": "\ud800"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    if request.param == "sqlite":
        address = f"sqlite:///{tmp_path_factory.mktemp('chat')}/chatkit.db"
    else:
        address = new_postgres_database(request.getfixturevalue("postgres"))
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=address, WEB_CONCURRENCY="1") as running:
        yield Caller(running.url)
    assert "unhandled exception" not in running.log


@pytest.fixture(scope="module")
def own(caller: Caller) -> dict[str, str]:
    """The identifiers of a conversation, by what stands for them in PROTOCOL."""
    thread, events = caller.create("show a widget")
    item = next(event.item.id for event in events if event.type == "thread.item.done" and event.item.type == "widget")
    return {"T": thread, "I": item, "A": "atc_1"}


def with_own(template: Any, own: dict[str, str]) -> Any:
    if isinstance(template, dict):
        return {name: with_own(value, own) for name, value in template.items()}
    if isinstance(template, list):
        return [with_own(value, own) for value in template]
    return own.get(template, template) if isinstance(template, str) else template


# The deletion comes last; the others need the conversation.
CASES = [(type_, path) for type_ in sorted(PROTOCOL, key="threads.delete".__eq__) for path in leaves(PROTOCOL[type_])]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("type_", "path"), CASES, ids=str)
def test_in_any_field(caller: Caller, own: dict[str, str], type_: str, path: tuple[Any, ...], odd: str) -> None:
    params = replaced(with_own(PROTOCOL[type_], own), path, ODD[odd])
    answer = caller.post(type_, **params)
    if odd == "surrogate":
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request_body")
    elif path[0] in IDS:
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    elif type_ == "input.transcribe":
        assert (answer.status_code, answer.json()["code"]) == (500, "openai_api_key_missing")
    else:
        assert answer.status_code in (200, 400, 403), answer.text


def test_a_text_with_nul_is_kept_as_it_is(caller: Caller) -> None:
    thread, _ = caller.create("progress\0")
    assert caller.items(thread, order="asc").data[0].content[0].text == "progress\0"
    assert caller.post("threads.update", thread_id=thread, title="a\0b").status_code == 200
    assert caller.thread(thread).title == "a\0b"
    assert caller.say(thread, "progress \0 again")[-1].type == "thread.item.done"


def test_nul_elsewhere_in_a_new_thread(caller: Caller) -> None:
    body = {"input": {**user_input("progress"), "quoted_text": "\0", "inference_options": {"model": "\0"}}}
    assert caller.post("threads.create", **body).status_code == 200
