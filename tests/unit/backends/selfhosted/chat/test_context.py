"""What servers and tools know about a request."""

from __future__ import annotations

import pytest

from tests.support.agents_under_test import seen
from tests.support.applications import Start
from tests.support.chat import Caller, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.responses_api import calls, says, streaming

SERVERS = "tests.support.servers_under_test"


def test_context_of_a_request(start: Start) -> None:
    url = start(
        f"{SERVERS}:Knowing", AUTH_JWT_SECRET=SECRET, CHATKIT_STATE_CLAIMS="plan", CHATKIT_AGENT_HEADERS="article-id,X-Org-Id"
    ).url
    caller = Caller(url, shared(plan="pro"))
    tag = {"type": "input_tag", "id": "art_1", "text": "The future", "data": {"kind": "article"}}
    content = [{"type": "input_text", "text": "Hello "}, tag]
    params = {"input": {**user_input(""), "content": content, "quoted_text": "a sentence above"}}
    body = {"type": "threads.create", "params": params, "metadata": {"page": 7}}
    caller.http.headers.update({"Accept-Language": "de", "Article-Id": "a1", "Cookie": "visitor=x", "X-Other": "y"})
    assert "accept-language: de" in caller.send(body).text
    ((context, message),) = seen
    assert (context.user, context.claims, context.metadata) == ("user:ada", {"plan": "pro"}, {"page": 7})
    assert dict(context.headers) == {"Accept-Language": "de", "article-id": "a1"}
    assert context.headers["ARTICLE-ID"] == "a1"
    assert message.quoted_text == "a sentence above"
    assert (message.content[1].id, message.content[1].data) == ("art_1", {"kind": "article"})


@pytest.mark.parametrize("agent", ["knowing", "knowing_workflow", f"{SERVERS}:WithKnowingTool"])
def test_tools_see_the_request(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    url = start(agent, AUTH_JWT_SECRET=SECRET, CHATKIT_STATE_CLAIMS="plan").url
    fake_openai.behaviour = streaming(calls("what_is_known"), says("I see"))
    caller = Caller(url, shared(plan="pro", email="ada@example.com"))
    caller.http.headers["Accept-Language"] = "de"
    caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}, "metadata": {"page": 7}})
    (output,) = [item["output"] for item in fake_openai.received[1].body["input"] if item.get("type") == "function_call_output"]
    assert output == "user:ada {'plan': 'pro'} {'Accept-Language': 'de'} {'page': 7}"
