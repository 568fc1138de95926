"""The workflow of ``bench.mixed``: it streams, hangs or blocks the event loop, depending on the message."""

from __future__ import annotations

import time
from typing import Any

from agents import Agent, Runner, TResponseInputItem
from pydantic import BaseModel


class WorkflowInput(BaseModel):
    input_as_text: str


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    """Handle ``block SECONDS``, the name of a model of ``bench.fake_openai``, or any other message."""
    first, _, seconds = workflow_input.input_as_text.partition(" ")
    if first == "block":
        time.sleep(float(seconds))  # on the event loop, as an agent does by mistake
    agent = Agent(name="Bench", model=first if first in ("hangs", "speaks-long") else "speaks")
    said: list[TResponseInputItem] = [{"role": "user", "content": workflow_input.input_as_text}]
    result = await Runner.run(agent, said)
    return {"output_text": result.final_output}
