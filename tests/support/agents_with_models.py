"""A module of an operator, with agents on a model that ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Runner, handoff
from chatkit.server import ChatKitServer
from pydantic import BaseModel

agent = Agent(
    name="Support",
    model="gpt-test",
    handoffs=[
        Agent(name="Billing", model="gpt-test"),
        Agent(name="Stock", model="gpt-other"),
        handoff(Agent(name="Refunds", model="gpt-test")),
    ],
    tools=[Agent(name="Expert", model="gpt-test").as_tool("ask_expert", "Ask the expert.")],
)


class WorkflowInput(BaseModel):
    input_as_text: str


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    await Runner.run(agent, workflow_input.input_as_text)


class Server(ChatKitServer[Any]):
    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.agents = {"own": Agent(name="Own", model="gpt-test")}

    async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield
