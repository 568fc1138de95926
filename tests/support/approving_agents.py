"""Agents with tools that need the user's approval."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import (
    Agent,
    ApplyPatchTool,
    HostedMCPTool,
    ModelSettings,
    RunContextWrapper,
    RunHooks,
    Runner,
    ShellCommandRequest,
    ShellTool,
    SQLiteSession,
    StopAtTools,
    ToolOutputImage,
    UserError,
    function_tool,
)
from agents.editor import ApplyPatchOperation
from chatkit.actions import Action
from chatkit.agents import AgentContext, ClientToolCall, ResponseStreamConverter, simple_to_agent_input
from chatkit.server import ChatKitServer
from chatkit.types import ThreadItemDoneEvent, ThreadMetadata, ThreadStreamEvent, UserMessageItem, WidgetItem
from chatkit.widgets import DynamicWidgetRoot
from pydantic import BaseModel

from chatkit.backends.selfhosted.chat import approvals
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.events import user_text

SECRET_OF_MCP = "a-secret-of-the-mcp-server-1c8e2f"

executed: list[str] = []
"""The calls of the tools, in this process."""


@function_tool(needs_approval=True)
async def delete_file(context: RunContextWrapper[AgentContext[Any]], path: str) -> str:
    """Delete a file."""
    executed.append(f"delete {path} of {context.context.request_context.user}")
    return f"{path} is deleted"


async def _is_expensive(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
    return bool(arguments["euros"] > 10)


@function_tool(needs_approval=_is_expensive)
async def pay(euros: int) -> str:
    """Pay."""
    executed.append(f"pay {euros}")
    return f"{euros} euros are paid"


@function_tool
async def look_up(path: str) -> str:
    """Look something up, which nobody has to approve."""
    executed.append(f"look up {path}")
    return f"{path} exists"


@function_tool
async def repeats(text: str, times: int) -> str:
    """Return a text several times."""
    return text * times


@function_tool
async def photographs(size: int) -> ToolOutputImage:
    """Return an image."""
    return ToolOutputImage(image_url=f"data:image/png;base64,{'iVBO' * (size // 4)}")


@function_tool(needs_approval=True, failure_error_function=None)
async def fail() -> str:
    """Fail, and not in words for the model."""
    executed.append("fail")
    raise RuntimeError("in the middle")


@function_tool
async def ask_page(context: RunContextWrapper[AgentContext[Any]], question: str) -> None:
    """Ask the page that the user looks at."""
    context.context.client_tool_call = ClientToolCall(name="ask_page", arguments={"question": question})


async def run_commands(request: ShellCommandRequest) -> str:
    executed.append(f"shell {request.data.action.commands}")
    return "done"


class Editor:
    """Changes no files."""

    def create_file(self, operation: ApplyPatchOperation) -> None:
        executed.append(f"create {operation.path}")

    def update_file(self, operation: ApplyPatchOperation) -> None:
        executed.append(f"update {operation.path}")

    def delete_file(self, operation: ApplyPatchOperation) -> None:
        executed.append(f"delete {operation.path}")


careful = Agent(name="Careful", model="gpt-test", tools=[delete_file, pay, look_up, repeats, photographs])
ending_with_a_tool = careful.clone(tool_use_behavior="stop_on_first_tool")


class Done(BaseModel):
    done: bool


careful_with_output = careful.clone(output_type=Done)


def _instructions(context: RunContextWrapper[Any], agent: Agent[Any]) -> str:
    if executed:
        raise UserError("These instructions are for one call only.")
    return "Be careful."


instructed_once = careful.clone(instructions=_instructions)
failing = Agent(name="Failing", model="gpt-test", tools=[fail])
asking = Agent(
    name="Asking",
    model="gpt-test",
    tools=[delete_file, ask_page],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"]),
)
asking_under_a_name = asking.clone(name="Careful", tools=[ask_page])
triage = Agent(name="Triage", model="gpt-first", tools=[look_up, delete_file])
specialist = Agent(name="Specialist", model="gpt-test", tools=[delete_file], handoffs=[triage])
triage.handoffs.append(specialist)
administrator = Agent(
    name="Administrator",
    model="gpt-test",
    tools=[
        ShellTool(executor=run_commands, needs_approval=True),
        ApplyPatchTool(editor=Editor(), needs_approval=True),
    ],
)
boss = Agent(name="Boss", model="gpt-boss", tools=[careful.as_tool("clerk", "Ask the clerk.")])
boss_of_failing_clerk = Agent(
    name="Boss", model="gpt-boss", tools=[careful.as_tool("clerk", "Ask the clerk.", failure_error_function=None)]
)
handing_over = Agent(name="Handing over", model="gpt-first", handoffs=[careful])
hosted_mcp = Agent(
    name="With hosted MCP",
    model="gpt-test",
    tools=[
        HostedMCPTool(
            tool_config={
                "type": "mcp",
                "server_label": "crm",
                "server_url": "https://crm.example.com/mcp",
                "headers": {"Authorization": f"Bearer {SECRET_OF_MCP}"},
                "require_approval": "always",
            }
        )
    ],
)
boss_of_hosted_mcp = Agent(name="Boss", model="gpt-boss", tools=[hosted_mcp.as_tool("clerk", "Ask the clerk.")])

tools_of_users: list[Any] = [delete_file]
"""What the agent of ``for_user`` has; a test changes it, as an operator does with a new version."""


def for_user(user: str) -> Agent[Any]:
    if not tools_of_users:
        raise SystemExit("no tools")
    return Agent(name="Personal", model="gpt-test", instructions=f"You serve {user}.", tools=list(tools_of_users))


def triage_for_user(user: str) -> Agent[Any]:
    """Return new agents that hand over to each other."""
    personal = triage.clone(instructions=f"You serve {user}.")
    personal.handoffs = [specialist.clone(handoffs=[personal])]
    return personal


class OwnServer(ChatKitServer[ChatContext]):
    """An operator's server, written as the guide has it."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        items = await self.store.load_thread_items(thread.id, after=None, limit=20, order="desc", context=context)
        result = Runner.run_streamed(careful, await simple_to_agent_input(items.data[::-1]), context=agent_context)
        async for event in approvals.run_events(agent_context, result):
            yield event

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        if action.type == approvals.ACTION and sender:
            agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
            async for event in approvals.resume(careful, agent_context, action, sender):
                yield event


class German(OwnServer):
    """Translates a button."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        async for event in super().respond(thread, input_user_message, context):
            if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, WidgetItem):
                card = event.item.widget.model_dump()
                card["confirm"]["label"] = "Erlauben"
                event.item.widget = DynamicWidgetRoot.model_validate(card)
            yield event


asking = Agent(
    name="Asking",
    model="gpt-test",
    tools=[delete_file, ask_page],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"]),
)
first = careful.clone(name="First", model="gpt-first")
second = careful.clone(name="Second", model="gpt-second")
sessions: dict[str, SQLiteSession] = {}
"""By the id of the thread."""


class Hooks(RunHooks[AgentContext[Any]]):
    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        executed.append(f"hook of {tool.name}")


class LargeServer(ChatKitServer[ChatContext]):
    """Selects an agent, and uses what OpenAI's guides have: a session, hooks and a converter."""

    converter = ResponseStreamConverter(partial_images=2)

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert input_user_message
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        agent = second if "second" in user_text(input_user_message) else first
        message = await simple_to_agent_input(input_user_message)
        session = sessions.setdefault(thread.id, SQLiteSession(thread.id))
        result = Runner.run_streamed(agent, message, context=agent_context, session=session, hooks=Hooks())
        async for event in approvals.run_events(agent_context, result, converter=self.converter):
            yield event

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert sender
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        async for event in approvals.resume(
            [first, second],
            agent_context,
            action,
            sender,
            converter=self.converter,
            session=sessions[thread.id],
            hooks=Hooks(),
        ):
            yield event


class TriageServer(ChatKitServer[ChatContext]):
    """Lets the user choose a tool, as OpenAI's guide has it: with a copy of the agent."""

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert input_user_message
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        choice = input_user_message.inference_options.tool_choice
        agent = triage.clone(model_settings=ModelSettings(tool_choice=choice.id if choice else None))
        message = await simple_to_agent_input(input_user_message)
        result = Runner.run_streamed(agent, message, context=agent_context)
        async for event in approvals.run_events(agent_context, result):
            yield event

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        assert sender
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        async for event in approvals.resume(triage, agent_context, action, sender):
            yield event


class WorkflowInput(BaseModel):
    input_as_text: str


async def workflow(workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(careful, workflow_input.input_as_text)
    return {"output_text": result.final_output_as(str)}
