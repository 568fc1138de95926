"""Agents on a model of an operator that answers with complete responses only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Usage, function_tool
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputText,
)
from pydantic import BaseModel


def message(text: str) -> ResponseOutputMessage:
    parts: Any = [ResponseOutputText(type="output_text", text=text, annotations=[])]
    return ResponseOutputMessage(id="msg", type="message", role="assistant", status="completed", content=parts)


CALL = ResponseFunctionToolCall(type="function_call", call_id="call_1", name="weather", arguments="{}")


class Complete(Model):
    """Calls the tool if there is one, and then sends the messages."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return ModelResponse(output=self._output(*args), usage=Usage(), response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        response = Response(
            id="resp",
            created_at=0,
            model="complete",
            object="response",
            output=self._output(*args),
            parallel_tool_calls=False,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)

    def _output(self, _instructions: Any, given: Any, _settings: Any, tools: Any, *_: Any) -> list[ResponseOutputItem]:
        if tools and not any(item.get("type") == "function_call_output" for item in given):
            return [message("I look it up."), CALL]
        return [message(text) for text in self.texts]


@function_tool
def weather() -> str:
    return "sun"


class Sky(BaseModel):
    sky: str


class WorkflowInput(BaseModel):
    input_as_text: str


complete = Agent(name="Complete", model=Complete("It is sunny.", "Enjoy it."), tools=[weather])
typed = Agent(name="Typed", model=Complete('{"sky":"blue"}'), output_type=Sky)


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    """Run an agent whose output is not for the user, and another."""
    await Runner.run(typed, workflow_input.input_as_text)
    await Runner.run(complete, workflow_input.input_as_text)
