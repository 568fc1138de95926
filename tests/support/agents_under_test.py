"""Agents of every kind that ``CHATKIT_AGENT`` accepts, and of some that it refuses."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from agents import (
    Agent,
    AgentsException,
    FunctionTool,
    GuardrailFunctionOutput,
    ImageGenerationTool,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    SQLiteSession,
    StopAtTools,
    ToolGuardrailFunctionOutput,
    ToolOutputImage,
    ToolOutputText,
    function_tool,
    input_guardrail,
    output_guardrail,
    tool_input_guardrail,
    tool_namespace,
)
from agents.models import _openai_shared
from agents.sandbox import SandboxAgent
from chatkit.agents import AgentContext, ClientToolCall
from chatkit.types import (
    Annotation,
    AssistantMessageContent,
    AssistantMessageItem,
    ClientEffectEvent,
    CustomSummary,
    EntitySource,
    HiddenContextItem,
    LockedStatus,
    ProgressUpdateEvent,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    Workflow,
)
from chatkit.widgets import Card, Text
from pydantic import BaseModel

blocked, release = threading.Event(), threading.Event()
"""Set by code that blocks its thread; ends the block."""
seen: list[Any] = []
"""What the methods of ``servers_under_test`` were called with."""
spoken: list[str] = []
"""The words of its ``Speaking``."""


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
    """Return what is known about the user."""
    asking = context.context.request_context
    return f"{asking.user} {dict(asking.claims)} {dict(asking.headers)} {dict(asking.metadata)}"


@function_tool
async def drafts(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Show a draft, and replace it."""
    item = AssistantMessageItem(
        id=context.context.generate_id("message"),
        thread_id=context.context.thread.id,
        created_at=datetime.now(),  # noqa: DTZ005  as in OpenAI's documentation
        content=[AssistantMessageContent(text="a draft")],
    )
    await context.context.stream(ThreadItemAddedEvent(item=item))
    final = item.model_copy(update={"content": [AssistantMessageContent(text="the final text")]})
    await context.context.stream(ThreadItemReplacedEvent(item=final))
    return "replaced"


@function_tool
def blocks() -> str:
    """Block without being async."""
    _block()
    return "done"


def _block() -> None:
    blocked.set()
    release.wait(30)


@function_tool
async def locks(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Lock the thread."""
    context.context.thread.status = LockedStatus(reason="Escalated to support.")
    return "locked"


@function_tool
async def counts(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Write to the thread's metadata."""
    context.context.thread.metadata["counted"] = True
    return "counted"


@function_tool(failure_error_function=None)
async def is_cancelled() -> str:
    """Raise CancelledError, although the turn is not cancelled."""
    raise asyncio.CancelledError


@function_tool(failure_error_function=None)
async def exits() -> str:
    """Exit as ``argparse`` does for invalid arguments."""
    sys.exit(2)


@function_tool
def sleeps(seconds: float) -> str:
    """Sleep in a thread."""
    time.sleep(seconds)
    return "slept"


@function_tool
async def blocks_the_loop(seconds: float) -> str:
    """Block the event loop, which an async function should not do."""
    time.sleep(seconds)
    return "blocked"


@function_tool
async def loads_and_notes(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Load the thread from the store, then write to the metadata of the turn's own thread object."""
    own = context.context
    await asyncio.sleep(0.5)
    await own.store.load_thread(own.thread.id, own.request_context)
    own.thread.metadata["noted"] = True
    return "noted"


@function_tool
async def notes(context: RunContextWrapper[AgentContext[Any]], key: str) -> str:
    """Write to the thread's metadata."""
    await asyncio.sleep(0.3)
    context.context.thread.metadata[key] = True
    return "noted"


@function_tool
async def shows_a_widget(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Show a widget, as in OpenAI's guide."""

    async def states() -> AsyncGenerator[Card, None]:
        yield Card(children=[Text(id="text", value="a")])
        yield Card(children=[Text(id="text", value="a word")])

    await context.context.stream_widget(states())
    return "shown"


@tool_input_guardrail
def no_city(data: Any) -> ToolGuardrailFunctionOutput:
    return ToolGuardrailFunctionOutput.raise_exception()


@function_tool(tool_input_guardrails=[no_city])
def guarded_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sun in {city}"


@input_guardrail
async def nothing_forbidden(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    """Look at the newest message only, after a delay."""
    await asyncio.sleep(0.3)
    text = given if isinstance(given, str) else str([item for item in given if item.get("role") == "user"][-1])
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered="forbidden" in text)


@input_guardrail
async def nothing_forbidden_before(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    """Look at all of the input, as the guardrail of OpenAI's documentation does."""
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered="forbidden" in str(given))


@output_guardrail
async def no_secret(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered="secret" in str(output))


judge = Agent(name="Judge", model="gpt-judge", output_type=bool)


async def judged(text: str) -> GuardrailFunctionOutput:
    """Ask a model, as the guardrails of OpenAI's documentation do."""
    result = await Runner.run(judge, text)
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=result.final_output)


@input_guardrail
async def judged_input(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    await asyncio.sleep(0.3)
    return await judged(str(given))


@output_guardrail
async def judged_output(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    return await judged(str(output))


input_judged = Agent(name="Input judged", model="gpt-test", input_guardrails=[judged_input])
judged_before = Agent(
    name="Judged before",
    model="gpt-test",
    input_guardrails=[InputGuardrail(guardrail_function=judged_input.guardrail_function, run_in_parallel=False)],
)


@input_guardrail
async def nothing_forbidden_late(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    await asyncio.sleep(0.8)
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered="forbidden" in str(given))


@input_guardrail
async def fails_late(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    await asyncio.sleep(0.8)
    raise RuntimeError("the guardrail is broken")


@input_guardrail
async def is_cancelled_late(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
    await asyncio.sleep(0.3)
    raise asyncio.CancelledError


@output_guardrail
async def is_cancelled_last(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    raise asyncio.CancelledError


@function_tool(failure_error_function=None)
async def breaks_down() -> str:
    """Fail."""
    raise ValueError("the tool is broken")


guarded_late = Agent(name="Guarded late", model="gpt-test", tools=[breaks_down], input_guardrails=[nothing_forbidden_late])
failing_late = Agent(name="Failing late", model="gpt-test", tools=[breaks_down], input_guardrails=[fails_late])
input_cancelled = Agent(name="Input cancelled", model="gpt-test", input_guardrails=[is_cancelled_late])
output_cancelled = Agent(name="Output cancelled", model="gpt-test", output_guardrails=[is_cancelled_last])
output_judged = Agent(name="Output judged", model="gpt-test", output_guardrails=[judged_output])
asking_a_judge = Agent(
    name="Asking a judge", model="gpt-test", tools=[judge.as_tool("judge", "Judges", failure_error_function=None)]
)
guarded = Agent(
    name="Guarded",
    model="gpt-test",
    tools=[weather],
    input_guardrails=[nothing_forbidden],
    output_guardrails=[no_secret],
)
guarded_from_the_start = Agent(name="Guarded", model="gpt-test", input_guardrails=[nothing_forbidden_before])
guarded_tool = Agent(name="With a guarded tool", model="gpt-test", tools=[guarded_weather])
exiting = Agent(name="Exiting", model="gpt-test", tools=[exits])
sleeping = Agent(name="Sleeping", model="gpt-test", tools=[sleeps])
blocking_the_loop = Agent(name="Blocking the loop", model="gpt-test", tools=[blocks_the_loop])
drafting = Agent(name="Drafting", model="gpt-test", tools=[drafts])
locking = Agent(name="Locking", model="gpt-test", tools=[locks])
blocking = Agent(name="Blocking", model="gpt-test", tools=[blocks])
counting = Agent(name="Counting", model="gpt-test", tools=[counts])
cancelling = Agent(name="Cancelling", model="gpt-test", tools=[is_cancelled])
loading = Agent(name="Loading", model="gpt-test", tools=[loads_and_notes])
noting = Agent(name="Noting", model="gpt-test", tools=[notes])
simple = Agent(name="Simple", instructions="Be brief.", model="gpt-test")
with_tool = Agent(name="With a tool", model="gpt-test", tools=[weather])
reasoning_with_tool = Agent(name="Reasoning", model="gpt-5.2", tools=[weather])
keeping_its_tool = Agent(name="Keeping its tool", model="gpt-test", tools=[weather], reset_tool_choice=False)
forcing_weather = with_tool.clone(model_settings=ModelSettings(tool_choice="weather"), tool_use_behavior="stop_on_first_tool")
knowing = Agent(name="Knowing", model="gpt-test", tools=[what_is_known])
with_page = Agent(
    name="With a page", model="gpt-test", tools=[ask_page], tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"])
)

forcing_the_page = with_page.clone(name="Forcing", model_settings=ModelSettings(tool_choice="required"))
always_forcing_the_page = forcing_the_page.clone(reset_tool_choice=False)

asking_guarded = Agent(
    name="Asking, guarded",
    model="gpt-test",
    tools=[ask_page],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"]),
    output_guardrails=[no_secret],
)


@function_tool
async def reports(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Report progress, an effect for the page, and a text with a source."""
    own = context.context
    await own.stream(ProgressUpdateEvent(text="On it"))
    await own.stream(ClientEffectEvent(name="changed", data={"by": "tool"}))
    source = EntitySource(id="art_1", title="The future", interactive=True)
    item = AssistantMessageItem(
        id=own.generate_id("message"),
        thread_id=own.thread.id,
        created_at=datetime.now(),  # noqa: DTZ005
        content=[AssistantMessageContent(text="Read this", annotations=[Annotation(source=source, index=4)])],
    )
    await own.stream(ThreadItemDoneEvent(item=item))
    return "reported"


able = Agent(
    name="Able",
    model="gpt-test",
    tools=[weather, what_is_known, shows_a_widget, reports, ask_page, locks],
    handoffs=[simple],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["ask_page"]),
    output_guardrails=[no_secret],
)


@function_tool
def says_nothing() -> None:
    """Return nothing."""


@function_tool
async def hides(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Stream an item that only the model gets."""
    own = context.context
    now = datetime.now()  # noqa: DTZ005
    hidden = HiddenContextItem(id=own.generate_id("message"), thread_id=own.thread.id, created_at=now, content="A note")
    await own.stream(ThreadItemDoneEvent(item=hidden))
    return "hidden"


@function_tool
async def summarizes(context: RunContextWrapper[AgentContext[Any]]) -> str:
    """Start a workflow with a summary."""
    await context.context.start_workflow(Workflow(type="custom", tasks=[], summary=CustomSummary(title="All done")))
    return "summarized"


class Table:
    """Compares its elements, as the tables of data libraries do."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return _Elements()

    def __str__(self) -> str:
        return "a table"


class _Elements:
    def __bool__(self) -> bool:
        raise ValueError("The truth value is ambiguous")


class Word(BaseModel):
    word: str


OUTPUTS: dict[str, Any] = {
    "returns_text": ToolOutputText(text="Sun"),
    "returns_parts": [ToolOutputText(text="Sun"), {"type": "text", "text": "Rain"}],
    "returns_an_image": ToolOutputImage(image_url="data:image/png;base64,iVBO"),
    "returns_a_dict": {"city": "Paris", "sun": True},
    "returns_a_file_of_its_own": {"type": "file", "name": "a.txt"},
    "returns_an_empty_list": [],
    "returns_a_model": Word(word="Sun"),
    "returns_a_list": ["Sun", "Rain"],
    "returns_a_number": 7,
    "returns_a_table": Table(),
}


def _returning(name: str) -> FunctionTool:
    def returns() -> Any:
        return OUTPUTS[name]

    return function_tool(returns, name_override=name, description_override="Return something else than a text.")


ending_with_a_tool = Agent(
    name="Ending with a tool",
    model="gpt-test",
    tools=[weather, says_nothing, shows_a_widget, reports, ask_page, hides, summarizes, *map(_returning, OUTPUTS)],
    tool_use_behavior="stop_on_first_tool",
)
typed_ending_with_a_tool = ending_with_a_tool.clone(output_type=Word)
ending_with_the_weather = ending_with_a_tool.clone(tool_use_behavior=StopAtTools(stop_at_tool_names=["weather"]))


typed = Agent(name="Typed", model="gpt-test", tools=[shows_a_widget], output_type=Word)


@function_tool
def ask_expert(new_loop: bool) -> str:
    """Ask the expert."""
    result = asyncio.run(Runner.run(simple, "Hello")) if new_loop else Runner.run_sync(simple, "Hello")
    return result.final_output_as(str)


with_blocking_tool = Agent(name="Blocking", model="gpt-test", tools=[ask_expert])


def chat_completions(user: str) -> Agent[Any]:
    client = _openai_shared.get_default_openai_client()
    assert client is not None
    return with_page.clone(model=OpenAIChatCompletionsModel("gpt-test", client))


@function_tool
async def adds_usage(context: RunContextWrapper[Any]) -> str:
    """Run an agent, and add its usage to that of this run, as in the Agents SDK's documentation."""
    nested = await Runner.run(simple, "Hello")
    context.usage.add(nested.context_wrapper.usage)
    return str(nested.final_output)


adding_usage = Agent(name="Adding usage", model="gpt-test", tools=[adds_usage])
slow_expert = Agent(name="Slow expert", model="gpt-slow")
quick_expert = Agent(name="Quick expert", model="gpt-quick")
asking_experts = Agent(
    name="Asking experts",
    model="gpt-test",
    tools=[slow_expert.as_tool("slow", "Ask an expert."), quick_expert.as_tool("quick", "Ask an expert.")],
)
identified = Agent(
    name="Identified", model="gpt-test", model_settings=ModelSettings(extra_args={"safety_identifier": "the operator's"})
)
identified_in_the_body = Agent(
    name="Identified", model="gpt-test", model_settings=ModelSettings(extra_body={"safety_identifier": "the operator's"})
)


async def _is_signed_in(context: RunContextWrapper[AgentContext[Any]], agent: Any) -> bool:
    return bool(context.context.request_context.user.startswith("user:"))


def _never(context: Any, agent: Any) -> bool:
    return False


@function_tool(is_enabled=_is_signed_in)
def search() -> str:
    """Search, for signed-in users."""
    return "found"


in_a_sandbox = SandboxAgent(name="In a sandbox")
(namespaced,) = tool_namespace(name="crm", description="Customers.", tools=[weather])
refused_by_the_sdk = Agent(
    name="Refused", model="gpt-test", tools=[namespaced], model_settings=ModelSettings(tool_choice="weather")
)
with_namespace = Agent(name="With a namespace", model="gpt-test", tools=[namespaced])
searching = Agent(name="Searching", model="gpt-test", tools=[search])
never_searching = searching.clone(tools=[replace(search, is_enabled=_never)])
without_search = searching.clone(tools=[replace(search, is_enabled=False)])

drawing = Agent(
    name="Drawing",
    model="gpt-test",
    tools=[ImageGenerationTool(tool_config={"type": "image_generation", "partial_images": 2})],
)
having_it_drawn = Agent(name="Having it drawn", model="gpt-first", handoffs=[drawing])
handing_over = Agent(name="Handing over", model="gpt-first", tools=[weather], handoffs=[simple])


def able_for_user(user: str) -> Agent[Any]:
    return able


def searching_for_user(user: str) -> Agent[Any]:
    return searching


def asking_experts_for_user(user: str) -> Agent[Any]:
    return asking_experts


def drawing_for_user(user: str) -> Agent[Any]:
    return drawing


def ending_with_a_tool_for_user(user: str) -> Agent[Any]:
    return ending_with_a_tool


def with_tool_for_user(user: str) -> Agent[Any]:
    return with_tool


def guarded_for_user(user: str) -> Agent[Any]:
    return guarded


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


async def _output(agent: Agent[Any], workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(agent, workflow_input.input_as_text)
    return {"output_text": result.final_output_as(str)}


async def run_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(simple, workflow_input)


async def tool_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(with_tool, workflow_input)


async def searching_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(searching, workflow_input)


async def experts_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(asking_experts, workflow_input)


async def workflow_with_its_own_context(workflow_input: WorkflowInput) -> Any:
    """It is empty when the run begins."""
    noted: dict[str, str] = {}

    @function_tool
    def note(context: RunContextWrapper[Any], text: str) -> str:
        """Note a text."""
        context.context["text"] = text
        return "noted"

    agent = Agent[Any](name="Noting", model="gpt-test", tools=[note])
    await Runner.run(agent, workflow_input.input_as_text, context=noted)
    return {"output_text": noted["text"]}


async def workflow_that_streams(workflow_input: WorkflowInput) -> Any:
    expert = Agent(name="Expert", model="gpt-test")
    agent = Agent(name="Asking", model="gpt-test", tools=[expert.as_tool("expert", "Ask an expert.")])
    result = Runner.run_streamed(agent, workflow_input.input_as_text)
    async for _ in result.stream_events():
        pass
    return {"output_text": result.final_output_as(str)}


async def drawing_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(drawing, workflow_input)


async def workflow_ending_with_a_tool(workflow_input: WorkflowInput) -> Any:
    return await _output(ending_with_a_tool, workflow_input)


async def sorting_workflow(workflow_input: WorkflowInput) -> Any:
    """As Agent Builder exports a branch: the first agent's output is for the workflow."""
    await Runner.run(typed, workflow_input.input_as_text)
    first = await Runner.run(with_tool, workflow_input.input_as_text)
    await Runner.run(with_tool, workflow_input.input_as_text)
    return {"output_text": first.final_output_as(str)}


async def continuing_workflow(workflow_input: WorkflowInput) -> None:
    """OpenAI has the history of the second and the third run."""
    first = await Runner.run(simple, workflow_input.input_as_text)
    messages: list[Any] = [{"role": "user", "content": "Shorter"}]
    for shorter in ("Shorter", messages):
        await Runner.run(simple, shorter, previous_response_id=first.last_response_id)


async def able_workflow(workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(able, workflow_input.input_as_text)
    return {"output_text": result.final_output}


async def going_on_workflow(workflow_input: WorkflowInput) -> Any:
    """As the Agents SDK's documentation continues a conversation."""
    first = await Runner.run(simple, workflow_input.input_as_text)
    result = await Runner.run(simple, [*first.to_input_list(), {"role": "user", "content": "Shorter"}])
    return {"output_text": result.final_output}


async def page_workflow(workflow_input: WorkflowInput) -> Any:
    await Runner.run(with_page, workflow_input.input_as_text)


async def exported_page_workflow(workflow_input: WorkflowInput) -> Any:
    """With the list that Agent Builder exports."""
    content: Any = [{"type": "input_text", "text": workflow_input.input_as_text}]
    conversation_history: list[Any] = [{"role": "user", "content": content}]
    await Runner.run(with_page, input=[*conversation_history])


async def rephrasing_workflow(workflow_input: WorkflowInput) -> Any:
    """Gives the model other words than those of the user."""
    result = await Runner.run(simple, f"Answer this: {workflow_input.input_as_text}")
    return {"output_text": result.final_output}


async def workflow_with_a_session(workflow_input: WorkflowInput) -> Any:
    session = SQLiteSession("workflow")
    await Runner.run(simple, workflow_input.input_as_text, session=session)
    result = await Runner.run(simple, "Shorter", session=session)
    return {"output_text": result.final_output}


REMARK = "Answer in German."


async def remarking_workflow(workflow_input: WorkflowInput) -> Any:
    """Adds something to the message of the user."""
    message, remark = ({"role": "user", "content": text} for text in (workflow_input.input_as_text, REMARK))
    result = await Runner.run(simple, [message, remark])  # type: ignore[list-item]
    return {"output_text": result.final_output}


async def two_agents_workflow(workflow_input: WorkflowInput) -> Any:
    """As Agent Builder exports two agents in a row."""
    content: Any = [{"type": "input_text", "text": workflow_input.input_as_text}]
    conversation_history: list[Any] = [{"role": "user", "content": content}]
    first = await Runner.run(simple, input=[*conversation_history])
    conversation_history.extend(item.to_input_item() for item in first.new_items)
    result = await Runner.run(simple, input=[*conversation_history])
    return {"output_text": result.final_output}


async def knowing_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(knowing, workflow_input)


async def guarded_workflow(workflow_input: WorkflowInput) -> Any:
    return await _output(guarded, workflow_input)


async def workflow_guarded_from_the_start(workflow_input: WorkflowInput) -> Any:
    return await _output(guarded_from_the_start, workflow_input)


async def dict_workflow(workflow_input: WorkflowInput) -> Any:
    await Runner.run(with_tool, workflow_input.input_as_text, run_config=cast(Any, {"workflow_name": "Weather"}))


async def catches_the_guardrail(workflow_input: WorkflowInput) -> Any:
    try:
        return await guarded_workflow(workflow_input)
    except AgentsException:
        return {"output_text": "Let us talk of something else."}


triage = Agent(name="Triage", model="gpt-test", handoffs=[typed])
typed_triage = Agent(name="Typed triage", model="gpt-test", output_type=Word, handoffs=[simple])


async def workflow_handing_over_to_typed(workflow_input: WorkflowInput) -> Any:
    await Runner.run(triage, workflow_input.input_as_text)


async def typed_workflow_handing_over(workflow_input: WorkflowInput) -> Any:
    await Runner.run(typed_triage, workflow_input.input_as_text)


async def workflow_forcing_the_page(workflow_input: WorkflowInput) -> Any:
    await Runner.run(forcing_weather, workflow_input.input_as_text)
    await Runner.run(forcing_the_page, workflow_input.input_as_text)


async def catching_workflow(workflow_input: WorkflowInput) -> Any:
    try:
        return await workflow_guarded_from_the_start(workflow_input)
    except InputGuardrailTripwireTriggered:
        return {"output_text": "We blocked that message for safety."}


async def workflow_with_a_fallback(workflow_input: WorkflowInput) -> Any:
    try:
        await Runner.run(guarded_from_the_start, workflow_input.input_as_text)
    except InputGuardrailTripwireTriggered:
        await Runner.run(simple, "Explain politely")


async def drafting_workflow(workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(drafting, workflow_input.input_as_text)
    return {"output_text": result.final_output_as(str)}


async def raises_cancelled(workflow_input: WorkflowInput) -> Any:
    raise asyncio.CancelledError


async def cancelling_workflow(workflow_input: WorkflowInput) -> Any:
    await Runner.run(cancelling, workflow_input.input_as_text)


async def cancels_itself(workflow_input: WorkflowInput) -> Any:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(1)


async def typed_workflow(workflow_input: WorkflowInput) -> Any:
    await Runner.run(typed, workflow_input.input_as_text)
    return {"output_text": "Done"}


async def times_out(workflow_input: WorkflowInput) -> Any:
    await asyncio.wait_for(asyncio.sleep(5), 0.1)


async def exiting_workflow(workflow_input: WorkflowInput) -> Any:
    raise SystemExit(2)


async def interrupted_workflow(workflow_input: WorkflowInput) -> Any:
    raise KeyboardInterrupt


async def leaving_workflow(workflow_input: WorkflowInput) -> Any:
    raise GeneratorExit


def exits_for_user(user: str) -> Agent[Any]:
    raise SystemExit(2)


async def exits_for_user_later(user: str) -> Agent[Any]:
    raise SystemExit(2)


async def cancels_itself_for_user(user: str) -> Any:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(1)


def raises_for_user(user: str) -> Agent[Any]:
    raise ValueError("the user's plan is not known")


def blocks_for_user(user: str) -> Agent[Any]:
    _block()
    return simple


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


class Noted(RunHooks[Any]):
    """An operator's own hooks, which note what they are called with."""

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        seen.append("start")

    async def on_llm_start(self, context: Any, agent: Any, system_prompt: Any, input_items: Any) -> None:
        seen.append("llm_start")

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        seen.append("llm_end")

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        seen.append("tool")

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        seen.append("end")


async def identified_workflow(workflow_input: WorkflowInput) -> Any:
    run_config = RunConfig(model_settings=ModelSettings(extra_args={"safety_identifier": "the operator's"}))
    result = await Runner.run(simple, workflow_input.input_as_text, run_config=run_config)
    return {"output_text": result.final_output_as(str)}


async def hooked_workflow(workflow_input: WorkflowInput) -> Any:
    result = await Runner.run(with_tool, workflow_input.input_as_text, hooks=Noted())
    seen.append(result.context_wrapper.usage.total_tokens)
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
