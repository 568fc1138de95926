"""The table of abilities in docs/agents.md: each row, in each shape that claims it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import create_engine, text

from tests.support.applications import Start
from tests.support.attachments import OFFERED, PDF, attach
from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import responding
from tests.support.identity_provider import SECRET, shared
from tests.support.images import PNG
from tests.support.responses_api import asked, calls, cites, draws, says, streaming, thinks, works
from tests.support.service import PROJECT
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"
AGENTS = {
    "Agent": "tests.support.agents_under_test:able",
    "Function": "tests.support.agents_under_test:able_for_user",
    "Exported workflow": "tests.support.agents_under_test:able_workflow",
    "Own server": f"{SERVERS}:Able",
}
ACTION = {"type": "press", "payload": {"button": "red"}}
APPROVING = {"Agent": "careful", "Function": "for_user", "Own server": "OwnServer"}
COMPOSER = {
    "models": [{"id": "gpt-best", "label": "Best"}],
    "tools": [{"id": "weather", "label": "Weather", "icon": "globe"}],
}
LISTED = {"CHATKIT_COMPOSER": json.dumps(COMPOSER)}


def done(events: list[Any], type_: str) -> list[Any]:
    return [event.item for event in events if event.type == "thread.item.done" and event.item.type == type_]


def of_type(events: list[Any], type_: str) -> list[Any]:
    return [event for event in events if event.type == type_]


def words(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    fake_openai.behaviour = streaming(says("one two three"))
    _, events = start(agent).create("Count")
    assert deltas(events) == ["one", " two", " three"]


def history(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("Hello Ada"), says("You are Ada"))
    thread_id, _ = caller.create("I am Ada")
    caller.say(thread_id, "Who am I?")
    assert asked(fake_openai.received[1].body) == [("user", "I am Ada"), ("assistant", "Hello Ada"), ("user", "Who am I?")]


def knowledge(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    url = start(agent, AUTH_JWT_SECRET=SECRET, CHATKIT_STATE_CLAIMS="plan", CHATKIT_AGENT_HEADERS="X-Org").url
    caller = Caller(url, shared(plan="pro"))
    caller.http.headers["X-Org"] = "o1"
    fake_openai.behaviour = streaming(calls("what_is_known"), says("I see"))
    caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}, "metadata": {"page": 7}})
    (output,) = [item["output"] for item in fake_openai.received[1].body["input"] if item.get("type") == "function_call_output"]
    assert output == "user:ada {'plan': 'pro'} {'X-Org': 'o1'} {'page': 7}"


def widgets(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("shows_a_widget"), says("Look"))
    thread_id, events = caller.create("Show me")
    assert len(done(events, "widget")) == 1
    assert "widget" in [item.type for item in caller.items(thread_id).data]


def reports(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    fake_openai.behaviour = streaming(calls("reports"), says("There"))
    _, events = start(agent).create("Report")
    assert [event.text for event in of_type(events, "progress_update") if event.text] == ["On it"]
    assert [(event.name, event.data) for event in of_type(events, "client_effect")] == [("changed", {"by": "tool"})]
    assert [note.source.id for item in done(events, "assistant_message") for note in item.content[0].annotations] == ["art_1"]


def client_tools(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("ask_page", question="Colour?"), says("Blue"))
    thread_id, events = caller.create("Which colour?")
    assert [call.name for call in done(events, "client_tool_call")] == ["ask_page"]
    answered = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert texts(answered) == ["Blue"]
    outputs = [item["output"] for item in fake_openai.received[1].body["input"] if item.get("type") == "function_call_output"]
    assert outputs == ['{"colour": "blue"}']


def reasoning(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    url = {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://example.com", "title": "An example"}
    fake_openai.behaviour = streaming([*thinks("First"), *draws("iVBORw0KGgo="), *cites("Hello", url)])
    caller = start(agent)
    thread_id, _ = caller.create("Go")
    kept = {item.type: item for item in caller.items(thread_id).data}
    assert kept.keys() == {"user_message", "workflow", "generated_image", "assistant_message"}
    assert kept["assistant_message"].content[0].annotations[0].source.url == "https://example.com"


def images(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    """A generated image is stored apart from its item, the page gets its URL, and the model gets the image."""
    caller = start(agent)
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(1_000_000)).decode()
    fake_openai.behaviour = streaming([*draws(image, image[:400]), *says("Here")], says("A cat"))
    thread_id, events = caller.create("Draw")
    (streamed,) = done(events, "generated_image")
    partial = [event.update.image.url for event in of_type(events, "thread.item.updated") if hasattr(event.update, "image")]
    assert partial == [f"data:image/png;base64,{image[:400]}"]
    answer = caller.post("items.list", thread_id=thread_id)
    assert len(answer.content) < 3000
    (listed,) = [item for item in answer.json()["data"] if item["type"] == "generated_image"]
    for url in (streamed.image.url, listed["image"]["url"]):
        assert requests.get(url, timeout=30).content == base64.b64decode(image)
    caller.say(thread_id, "What is it?")
    assert f"data:image/png;base64,{image}" in json.dumps(fake_openai.received[1].body)


def openais_tools(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    """The calls are not shown, and what they return is not stored."""
    much = "x" * 500_000
    result = {"file_id": "file_1", "filename": "a.txt", "score": 1.0, "text": much, "attributes": {}}
    search = works("web_search_call", "searching", action={"type": "search", "query": "a", "sources": []})
    files = works("file_search_call", "searching", queries=["a"], results=[result])
    outputs = [{"type": "logs", "logs": much}, {"type": "image", "url": f"data:image/png;base64,{much}"}]
    code = works("code_interpreter_call", "interpreting", code=much, container_id="cntr_1", outputs=outputs)
    typed = [
        {"type": "response.code_interpreter_call_code.delta", "item_id": "call_of_the_model", "output_index": 0, "delta": much}
    ]
    caller = start(agent)
    fake_openai.behaviour = streaming([*search, *files, *typed, *code, *says("Found it")])
    thread_id, events = caller.create("Search")
    assert (errors(events), texts(events)) == ([], ["Found it"])
    answer = caller.post("items.list", thread_id=thread_id)
    assert [item["type"] for item in answer.json()["data"]] == ["assistant_message", "user_message"]
    assert len(answer.content) < 3000


def handoffs(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("transfer_to_simple"), says("Simple here"))
    thread_id, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Simple here"])
    assert fake_openai.received[1].body["instructions"] == "Be brief."
    assert [item.type for item in caller.items(thread_id).data] == ["assistant_message", "user_message"]


def guardrails(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("the secret word"))
    thread_id, events = caller.create("Hello")
    assert errors(events) == [("custom", "This can't be answered here.", False)]
    assert [item.type for item in caller.items(thread_id).data] == ["user_message"]


def locks(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("locks"), says("Support will write"))
    thread_id, _ = caller.create("Help")
    assert caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("Hello?")).status_code == 403


def actions_to_the_model(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("Hello"), says("You pressed it"))
    thread_id, _ = caller.create("Hello")
    assert texts(list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))) == ["You pressed it"]
    assert "press with {'button': 'red'}" in str(fake_openai.received[1].body["input"])


def actions_in_code(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(f"{SERVERS}:Overriding")
    thread_id, _ = caller.create("Hello")
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))
    assert texts(events) == ["press with {'button': 'red'}"]
    answer = caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION)
    assert answer.json()["updated_item"]["id"] == "msg_sync"


def approval(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    (shape,) = [shape for shape, own in AGENTS.items() if own == agent]
    caller = start(f"tests.support.approving_agents:{APPROVING[shape]}")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("It is gone"))
    thread_id, events = caller.create("Delete it")
    (widget,) = done(events, "widget")
    action = {"type": "chatkit.approval", "payload": {"approved": True}}
    decided = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action))
    assert texts(decided) == ["It is gone"]


def rich_input(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    tag = {"type": "input_tag", "id": "art_1", "text": "Future", "data": {}}
    content = [{"type": "input_text", "text": "About "}, tag]
    fake_openai.behaviour = streaming(says("I see"))
    list(start(agent).stream("threads.create", input={**user_input(""), "content": content, "quoted_text": "a sentence"}))
    given = " ".join(said for _, said in asked(fake_openai.received[0].body))
    assert all(part in given for part in ("About @Future", "a sentence", "@Future stands for art_1"))


def files(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, **OFFERED)
    fake_openai.behaviour = streaming(says("I see"), says("As before"))
    thread_id, _ = caller.create(
        "Look", attach(caller, "a.png", "image/png", PNG), attach(caller, "a.pdf", "application/pdf", PDF)
    )
    caller.say(thread_id, "Again")
    assert len(fake_openai.received) == 2
    for request in fake_openai.received:
        message = next(item for item in request.body["input"] if item.get("role") == "user")
        assert [part["type"] for part in message["content"]] == ["input_text", "input_image", "input_file"]


def choices(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), says("Sunny"))
    chosen = user_input("Weather?", model="gpt-best", tool_choice={"id": "weather"})
    list(start(agent, **LISTED).stream("threads.create", input=chosen))
    first = fake_openai.received[0].body
    assert (first["model"], first["tool_choice"]) == ("gpt-best", {"type": "function", "name": "weather"})


def titles(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("My first words")
    assert caller.thread(thread_id).title == "My first words"


def dictation(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = responding(200, {"text": "Hello there"})
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm").json() == {"text": "Hello there"}


def limits(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, CHATKIT_TURN_SECONDS="1")
    fake_openai.behaviour = streaming([*says("half a")[:4], 5.0])
    _, events = caller.create("Hello")
    assert errors(events) == [("custom", "The response took too long. Please try again.", True)]


def titles_by_a_model(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, CHATKIT_TITLE_MODEL="gpt-title")
    fake_openai.behaviour = streaming(says("A title"))
    thread_id, _ = caller.create("My first words")
    wait_for(lambda: caller.thread(thread_id).title == "A title")


def usage(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, CHATKIT_TOKENS_PER_DAY="1")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    answer = caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("Hello"))
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")


def safety_identifiers(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, AUTH_JWT_SECRET=SECRET)
    fake_openai.behaviour = streaming(says("Hello"))
    Caller(caller.url, shared(sub="ada")).create("Hello")
    assert fake_openai.received[0].body["safety_identifier"] == hashlib.sha256(b"user:ada").hexdigest()


ALL = set(AGENTS)
Check = Callable[[Start, FakeOpenAI, str], None]
ABILITIES: dict[str, tuple[Check, set[str]]] = {
    "words as the model writes them": (words, ALL),
    "the model gets the earlier messages": (history, ALL),
    "tools know the user, claims, headers and metadata": (knowledge, ALL),
    "widgets": (widgets, ALL),
    "progress, client effects, sources": (reports, ALL),
    "client tools": (client_tools, ALL),
    "reasoning, generated images, citations": (reasoning, ALL),
    "generated images are kept apart, with URLs of their own": (images, ALL),
    "web search, file search, code interpreter": (openais_tools, ALL),
    "handoffs": (handoffs, ALL),
    "guardrails": (guardrails, ALL),
    "locking or closing a conversation": (locks, ALL),
    "widget actions are told to the model": (actions_to_the_model, ALL),
    "widget actions are handled in code": (actions_in_code, {"Own server"}),
    "approval of tool calls": (approval, ALL - {"Exported workflow"}),
    "quoted text and mentions reach the model": (rich_input, ALL),
    "attached images and files reach the model": (files, ALL),
    "the composer's model and tool": (choices, ALL - {"Own server"}),
    "titles of the first words": (titles, ALL - {"Own server"}),
    "titles by a model": (titles_by_a_model, ALL - {"Own server"}),
    "dictation": (dictation, ALL),
    "time limit": (limits, ALL),
    "usage is counted and limited": (usage, ALL),
    "calls name the user by a hash": (safety_identifiers, ALL),
}


@pytest.mark.parametrize(
    ("ability", "shape"), [(ability, shape) for ability, (_, shapes) in ABILITIES.items() for shape in sorted(shapes)]
)
def test_ability(start: Start, fake_openai: FakeOpenAI, ability: str, shape: str) -> None:
    check, _ = ABILITIES[ability]
    check(start, fake_openai, AGENTS[shape])


def test_feedback_is_stored_in_every_shape(start: Start, fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    fake_openai.behaviour = streaming(says("Hello"))
    for number, agent in enumerate(AGENTS.values(), start=1):
        caller = start(agent)
        thread_id, _ = caller.create("Hello")
        message = caller.items(thread_id).data[0]
        caller.post("items.feedback", thread_id=thread_id, item_ids=[message.id], kind="positive")
        with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM chat_items WHERE feedback = 'positive'")).scalar() == number


def test_guide_has_this_table() -> None:
    lines = (PROJECT / "docs/agents.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header = next(index for index, row in enumerate(rows) if row[1:] == list(AGENTS))
    claimed = {}
    for name, *cells in rows[header + 2 :]:
        if len(cells) != len(AGENTS):
            break
        claimed[name] = {shape for shape, cell in zip(AGENTS, cells, strict=True) if cell == "✓"}
    assert claimed == {name: shapes for name, (_, shapes) in ABILITIES.items()}
