"""A workflow with a "User approval" node, as Agent Builder exports it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class WorkflowInput(BaseModel):
    input_as_text: str


def approval_request(message: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    # TODO: Implement
    return True


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    return {"output_text": "done" if approval_request("Shall I?") else "not done"}
