"""A ``ChatKitServer`` of one's own: helps to plan a garden. Run it with ``CHATKIT_AGENT=examples.garden:GardenServer``.

It has widgets with server and client actions, a tool that needs the user's approval, client tools and effects, sources,
progress, composer tools, mentions, and titles by a model. A few rules take the place of the model unless ``OPENAI_API_KEY``
is set. For its composer tool set:

    CHATKIT_COMPOSER={"tools": [{"id": "calendar", "label": "Calendar", "icon": "calendar"}]}
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from agents import Agent, Model, RunContextWrapper, Runner, StopAtTools, function_tool
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from chatkit.actions import Action
from chatkit.agents import AgentContext, ClientToolCall, ThreadItemConverter
from chatkit.server import ChatKitServer
from chatkit.types import (
    Annotation,
    AssistantMessageContent,
    AssistantMessageItem,
    ClientEffectEvent,
    EntitySource,
    HiddenContextItem,
    ProgressUpdateEvent,
    SyncCustomActionResponse,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    UserMessageTagContent,
    WidgetItem,
)
from chatkit.widgets import DynamicWidgetRoot

from chatkit.backends.selfhosted.chat import approvals
from chatkit.backends.selfhosted.chat.context import ChatContext

PLANTS = {
    "tomato": ("Tomato", "Sow indoors in March, plant out in late May. Needs sun."),
    "bean": ("Runner bean", "Sow outdoors from May. Climbs, so give it a pole."),
    "kale": ("Kale", "Sow in May, harvest all winter. Stands frost."),
}

Garden = RunContextWrapper[AgentContext[ChatContext]]


# What the tools show


def message(
    thread: ThreadMetadata, item_id: str, text: str, annotations: list[Annotation] | None = None
) -> ThreadItemDoneEvent:
    content = [AssistantMessageContent(text=text, annotations=annotations or [])]
    item = AssistantMessageItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=content)  # noqa: DTZ005
    return ThreadItemDoneEvent(item=item)


def plants_widget(chosen: str | None = None, starred: int = 0) -> DynamicWidgetRoot:
    """A card with three kinds of buttons: two that the server handles, with and without a response, and one of the page's."""
    children: list[dict[str, Any]] = [{"type": "Title", "value": "What to plant"}]
    for plant_id, (name, _) in PLANTS.items():
        choose = {"type": "plant.choose", "payload": {"plant": plant_id}}
        show = {"type": "plant.show", "payload": {"plant": plant_id}, "handler": "client"}
        children += [
            {"type": "Text", "value": f"{name} (chosen)" if plant_id == chosen else name},
            {"type": "Button", "label": f"Plant {name}", "disabled": chosen is not None, "onClickAction": choose},
            {"type": "Button", "label": f"Show {name}", "onClickAction": show},
        ]
    star = {"type": "star", "payload": {"starred": starred + 1, "chosen": chosen}, "streaming": False}
    children.append({"type": "Button", "label": f"Star ({starred})", "onClickAction": star})
    return DynamicWidgetRoot.model_validate({"type": "Card", "children": children})


@function_tool
async def show_plants(garden: Garden) -> str:
    """Show the plants to choose from."""
    await garden.context.stream(ProgressUpdateEvent(icon="search", text="Looking through the seed box"))
    await garden.context.stream_widget(plants_widget(), copy_text=", ".join(name for name, _ in PLANTS.values()))
    return "The user sees the plants."


@function_tool
async def describe_plants(garden: Garden) -> str:
    """Describe the plants, with a source for each that the page can open."""
    text, annotations = "", []
    for plant_id, (name, advice) in PLANTS.items():
        text += f"{name}: "
        source = EntitySource(
            id=plant_id, title=name, description=advice, icon="book-open", interactive=True, data={"plant": plant_id}
        )
        annotations.append(Annotation(source=source, index=len(text) - 2))
        text += f"{advice} "
    context = garden.context
    await context.stream(message(context.thread, context.generate_id("message"), text.strip(), annotations))
    return "The user has read it."


@function_tool
async def water(garden: Garden, litres: int) -> str:
    """Water the garden."""
    watered = garden.context.thread.metadata.get("litres", 0) + litres
    garden.context.thread.metadata["litres"] = watered  # stored with the thread, for every process
    await garden.context.stream(ClientEffectEvent(name="garden/watered", data={"litres": watered}))
    return f"{watered} litres so far."


@function_tool(needs_approval=True)
async def order_seeds(garden: Garden, plant: str, packets: int) -> str:
    """Order seeds, which the user has to approve."""
    await garden.context.stream(ClientEffectEvent(name="garden/ordered", data={"plant": plant, "packets": packets}))
    return f"{packets} packets of {plant} are ordered."


@function_tool
async def selected_bed(garden: Garden) -> None:
    """Ask the page which bed the user has selected on its map."""
    await garden.context.stream(ProgressUpdateEvent(text="Looking at your map"))
    garden.context.client_tool_call = ClientToolCall(name="selected_bed", arguments={})


# The agents


def offline(call: ModelCall) -> list[Any]:
    """What the model does without a key: its choice of a tool by a word of the user."""
    if "title" in (call.system_instructions or ""):
        return [assistant_message("Plans for the garden")]
    *_, last = call.input
    if last.get("type") == "function_call_output":
        return [assistant_message(f"Done. {last['output']}")]
    said = str(last.get("content"))
    for word, tool, arguments in (
        ("describe", "describe_plants", {}),
        ("plant", "show_plants", {}),
        ("order", "order_seeds", {"plant": "kale", "packets": 3}),
        ("water", "water", {"litres": 5}),
        ("bed", "selected_bed", {}),
    ):
        if word in said.lower() and any(own.name == tool for own in call.tools):
            return [function_call(tool, arguments, call_id=f"call_{len(call.input)}")]
    if "calendar" in (call.system_instructions or ""):
        return [assistant_message("May: sow beans and kale, plant tomatoes out.")]
    return [
        assistant_message(
            "Ask me to show or describe plants, to water, to order seeds, or about the bed that you have selected."
        )
    ]


class OfflineModel(Model):
    """Answers by the rules of ``offline``."""

    async def get_response(self, *arguments: Any, **named: Any) -> Any:
        return await ScriptedModel([ModelStep.respond(offline)]).get_response(*arguments, **named)

    def stream_response(self, *arguments: Any, **named: Any) -> Any:
        return ScriptedModel([ModelStep.respond(offline)]).stream_response(*arguments, **named)


model = None if os.environ.get("OPENAI_API_KEY") else OfflineModel()
gardener = Agent[AgentContext[ChatContext]](
    name="Gardener",
    instructions="You help to plan a small garden. Use the tools. <PLANT> is what the user mentions, <CHOSEN> what they chose.",
    model=model,
    tools=[show_plants, describe_plants, water, order_seeds, selected_bed],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["show_plants", "describe_plants", "selected_bed"]),
)
calendar_agent = Agent(name="Calendar", instructions="You know the gardener's calendar.", model=model)
title_agent = Agent(name="Title", instructions="Write a title of two to five words for this conversation.", model=model)


# The server


class GardenConverter(ThreadItemConverter):
    async def tag_to_message_content(self, tag: UserMessageTagContent) -> Any:
        name, advice = PLANTS.get(tag.id, (tag.text, "Nothing is known of it."))
        return {"type": "input_text", "text": f"<PLANT>{name}: {advice}</PLANT>"}


class GardenServer(ChatKitServer[ChatContext]):
    converter = GardenConverter()

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        items = await self.store.load_thread_items(thread.id, after=None, limit=20, order="desc", context=context)
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        messages = await self.converter.to_agent_input(items.data[::-1])
        tool = input_user_message and input_user_message.inference_options.tool_choice
        agent: Agent[Any] = calendar_agent if tool and tool.id == "calendar" else gardener
        result = Runner.run_streamed(agent, messages, context=agent_context)
        async for event in approvals.run_events(agent_context, result):
            yield event
        await self._write_title(thread, input_user_message)

    async def _write_title(self, thread: ThreadMetadata, first_message: UserMessageItem | None) -> None:
        if thread.title is None and first_message is not None:
            result = await Runner.run(title_agent, await self.converter.to_agent_input(first_message))
            thread.title = result.final_output_as(str)

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Plant what the user chose: change the card, tell the page, and let the model know in its next turn."""
        if action.type == approvals.ACTION and sender is not None:
            agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
            async for event in approvals.resume(gardener, agent_context, action, sender):
                yield event
            return
        plant = action.payload["plant"]
        name, advice = PLANTS[plant]
        if sender is not None:
            yield ThreadItemReplacedEvent(item=sender.model_copy(update={"widget": plants_widget(plant)}))
        hidden = HiddenContextItem(
            id=self.store.generate_item_id("message", thread, context),
            thread_id=thread.id,
            created_at=datetime.now(),  # noqa: DTZ005
            content=f"<CHOSEN>{name}</CHOSEN>",
        )
        await self.store.add_thread_item(thread.id, hidden, context)
        yield ClientEffectEvent(name="garden/planted", data={"plant": plant})
        yield message(thread, self.store.generate_item_id("message", thread, context), f"{name} it is. {advice}")

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        """Count the stars on the card."""
        if sender is None:
            return SyncCustomActionResponse()
        widget = plants_widget(action.payload.get("chosen"), action.payload["starred"])
        item = sender.model_copy(update={"widget": widget})
        await self.store.save_item(thread.id, item, context)
        return SyncCustomActionResponse(updated_item=item)
