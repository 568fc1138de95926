"""Agents of every shape that ``CHATKIT_AGENT`` takes, and of some that it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from agents import Agent, RunContextWrapper, Runner, StopAtTools, function_tool
from chatkit.agents import AgentContext, ClientToolCall
from pydantic import BaseModel


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sun in {city}"


@function_tool
async def ask_page(context: RunContextWrapper[AgentContext[Any]], question: str) -> None:
    """Ask the page that the user looks at."""
    context.context.client_tool_call = ClientToolCall(name="ask_page", arguments={"question": question})


@function_tool
def what_is_known(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """What is known of the user."""
    asking = context.context.request_context
    return f"{asking.user} {dict(asking.claims)}"


simple = Agent(name="Simple", instructions="Be brief.", model="gpt-test")
with_tool = Agent(name="With a tool", model="gpt-test", tools=[weather])
knowing = Agent(name="Knowing", model="gpt-test", tools=[what_is_known])
with_page = Agent(
    name="With a page", model="gpt-test", tools=[ask_page], tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"])
)


def for_user(user: str) -> Agent[Any]:
    return Agent(name="Personal", instructions=f"You serve {user}.", model="gpt-test")


async def for_user_later(user: str) -> Agent[Any]:
    return for_user(user)


def for_claims(user: str, claims: Mapping[str, Any]) -> Agent[Any]:
    return Agent(name="Personal", instructions=f"{user} knows {dict(claims)}.", model="gpt-test")


def for_nobody(user: str) -> Any:
    return {"user": user}


class WorkflowInput(BaseModel):
    input_as_text: str


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(simple, workflow_input.input_as_text)
    return {"output_text": result.final_output_as(str)}


async def returns_nothing(workflow_input: WorkflowInput) -> None:
    await Runner.run(simple, workflow_input.input_as_text)


async def returns_parsed(workflow_input: WorkflowInput) -> Any:
    return {"category": "booking", "sure": True}


async def says_without_an_agent(workflow_input: WorkflowInput) -> Any:
    return {"output_text": f"You said {workflow_input.input_as_text}"}


async def runs_another_agent_as_tool(workflow_input: WorkflowInput) -> Any:
    tool = with_tool.as_tool("expert", "Ask the expert.")
    boss = Agent(name="Boss", model="gpt-test", tools=[tool])
    result = await Runner.run(boss, workflow_input.input_as_text)
    return {"output_text": result.final_output_as(str)}


async def runs_two_at_once(workflow_input: WorkflowInput) -> Any:
    one, two = await asyncio.gather(*(Runner.run(simple, workflow_input.input_as_text) for _ in range(2)))
    return {"output_text": one.final_output_as(str) or two.final_output_as(str)}


async def breaks(workflow_input: WorkflowInput) -> Any:
    raise KeyError("an internal detail")


def takes_nothing() -> None: ...


def takes_three(user: str, claims: Mapping[str, Any], more: int) -> None: ...


def not_async(workflow_input: WorkflowInput) -> Any:
    return {}


a_number = 42
