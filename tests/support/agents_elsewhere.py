"""Agents of every kind on the models of another provider, most of them with the Chat Completions API."""

from __future__ import annotations

from typing import Any

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, RunConfig, Runner, StopAtTools
from agents.testing import ScriptedModel
from httpx2 import Limits
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import BaseModel

from tests.support.agents_under_test import ask_page, simple, weather

provider = AsyncOpenAI(
    api_key="sk-of-the-provider",
    base_url="http://127.0.0.1:9/v1",
    max_retries=0,
    # Each application of the tests has its own event loop, and can't close a connection of another one.
    http_client=DefaultAsyncHttpxClient(limits=Limits(max_keepalive_connections=0)),
)
"""The provider's client. A test sets its ``base_url``."""

elsewhere = Agent(
    name="Elsewhere",
    model=OpenAIChatCompletionsModel("llama", provider),
    tools=[weather, ask_page],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"]),
)

with_usage = elsewhere.clone(name="With usage", model_settings=ModelSettings(include_usage=True))
with_responses = elsewhere.clone(model=OpenAIResponsesModel("llama", provider))
scripted = ScriptedModel([])
unknown = Agent(name="Unknown", model=scripted)
prefixed = Agent(name="Prefixed", model="litellm/anthropic/claude")
handing_over_to_prefixed = Agent(name="Handing over", model="gpt-first", handoffs=[prefixed])
handing_over = Agent(name="Handing over", model="gpt-first", handoffs=[elsewhere, unknown])
handing_back = elsewhere.clone(handoffs=[simple])


def for_user(user: str) -> Agent[Any]:
    return elsewhere


class WorkflowInput(BaseModel):
    input_as_text: str


async def configured_workflow(workflow_input: WorkflowInput) -> Any:
    run_config = RunConfig(model=OpenAIChatCompletionsModel("llama", provider))
    result = await Runner.run(simple, workflow_input.input_as_text, run_config=run_config)
    return {"output_text": result.final_output}


async def unknown_workflow(workflow_input: WorkflowInput) -> Any:
    await Runner.run(unknown, workflow_input.input_as_text)


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(elsewhere, workflow_input.input_as_text)
    return {"output_text": result.final_output}
