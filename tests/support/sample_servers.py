"""Servers written like OpenAI's four advanced samples, each with a subject of its own.

What the samples import, inherit from and override is the same here, FastAPI included. Adapted are the constructor and the type
of the context. Imported by the service only, see ``servers_under_test``.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Annotated, Any

from agents import (
    Agent,
    ImageGenerationTool,
    ModelSettings,
    RunConfig,
    RunContextWrapper,
    Runner,
    StopAtTools,
    function_tool,
)
from chatkit.actions import Action
from chatkit.agents import AgentContext, ClientToolCall, ResponseStreamConverter, ThreadItemConverter, stream_agent_response
from chatkit.server import ChatKitServer
from chatkit.store import AttachmentStore, Store
from chatkit.types import (
    Annotation,
    AssistantMessageContent,
    AssistantMessageItem,
    Attachment,
    AttachmentCreateParams,
    AudioInput,
    ClientEffectEvent,
    EntitySource,
    HiddenContextItem,
    ProgressUpdateEvent,
    StreamOptions,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadItemUpdated,
    ThreadMetadata,
    ThreadStreamEvent,
    TranscriptionResult,
    UserMessageItem,
    UserMessageTagContent,
    WidgetItem,
    WidgetRootUpdated,
)
from chatkit.widgets import Card, Text, WidgetRoot, WidgetTemplate
from fastapi import HTTPException
from openai import OpenAI
from openai.types.responses import EasyInputMessageParam, ResponseInputTextParam
from openai.types.responses.response_input_item_param import Message
from openai.types.responses.tool_param import ImageGeneration
from pydantic import BaseModel, ConfigDict, Field

from chatkit.backends.selfhosted.chat.context import ChatContext

choices_template = WidgetTemplate.from_file("choices.widget")
title_agent = Agent[AgentContext[ChatContext]](name="Titles", model="gpt-titles", instructions="Write a title.")


def choices(names: list[str], chosen: str | None = None) -> WidgetRoot:
    return choices_template.build({"names": names, "chosen": chosen})


class Converter(ThreadItemConverter):
    async def hidden_context_to_input(self, item: HiddenContextItem) -> Message:
        return Message(type="message", content=[ResponseInputTextParam(type="input_text", text=item.content)], role="user")


class Server(ChatKitServer[ChatContext]):
    """What the samples repeat in each server."""

    thread_item_converter: ThreadItemConverter = Converter()

    async def _input(self, thread: ThreadMetadata, context: ChatContext) -> list[Any]:
        page = await self.store.load_thread_items(thread.id, after=None, limit=20, order="desc", context=context)
        return await self.thread_item_converter.to_agent_input(list(reversed(page.data)))

    def _message(self, thread: ThreadMetadata, context: ChatContext, text: str) -> ThreadItemDoneEvent:
        item_id = self.store.generate_item_id("message", thread, context)
        return message(thread, item_id, text)

    async def _make_title(self, thread: ThreadMetadata, user_message: UserMessageItem | None) -> None:
        if user_message is None or thread.title is not None:
            return
        run = await Runner.run(title_agent, input=await self.thread_item_converter.to_agent_input(user_message))
        thread.title = run.final_output.strip(".")


def message(thread: ThreadMetadata, item_id: str, text: str, *annotations: Annotation) -> ThreadItemDoneEvent:
    content = [AssistantMessageContent(text=text, annotations=list(annotations))]
    item = AssistantMessageItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=content)  # noqa: DTZ005
    return ThreadItemDoneEvent(item=item)


async def hide(store: Store[ChatContext], thread: ThreadMetadata, context: ChatContext, content: str) -> None:
    """Add an item that only the model gets."""
    item_id = store.generate_item_id("message", thread, context)
    item = HiddenContextItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=content)  # noqa: DTZ005
    await store.add_thread_item(thread.id, item, context=context)


# Like cat-lounge: state of each thread, effects, hidden context, a widget whose action gives a name, images, no cancellation


class Tanks:
    def __init__(self) -> None:
        self.names: dict[str, str] = {}


class AquariumContext(AgentContext[ChatContext]):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    tanks: Annotated[Tanks, Field(exclude=True)]


class Suggestion(BaseModel):
    name: str
    reason: str


@function_tool(description_override="Feed the fish.")
async def feed(ctx: RunContextWrapper[AquariumContext], food: str | None = None) -> None:
    aquarium = ctx.context
    await hide(aquarium.store, aquarium.thread, aquarium.request_context, f"<FED>{food}</FED>")
    await aquarium.stream(ClientEffectEvent(name="fed", data={"fish": aquarium.tanks.names.get(aquarium.thread.id)}))


@function_tool(description_override="Suggest names.")
async def suggest_names(ctx: RunContextWrapper[AquariumContext], suggestions: list[Suggestion]) -> None:
    names = [suggestion.name for suggestion in suggestions]
    await ctx.context.stream(message(ctx.context.thread, ctx.context.generate_id("message"), "Some names:"))
    await ctx.context.stream_widget(choices(names), copy_text=", ".join(names))


class AquariumServer(Server):
    def __init__(self, store: Store[ChatContext]) -> None:
        super().__init__(store)
        self.tanks = Tanks()
        images = ImageGenerationTool(tool_config=ImageGeneration(type="image_generation", partial_images=3))
        self.agent = Agent[AquariumContext](
            name="Keeper",
            model="gpt-test",
            tools=[feed, suggest_names, images],
            tool_use_behavior=StopAtTools(stop_at_tool_names=[suggest_names.name]),
        )

    async def respond(
        self, thread: ThreadMetadata, item: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        aquarium = AquariumContext(thread=thread, store=self.store, tanks=self.tanks, request_context=context)
        result = Runner.run_streamed(self.agent, await self._input(thread, context), context=aquarium)
        async for event in stream_agent_response(aquarium, result, converter=ResponseStreamConverter(partial_images=3)):
            yield event

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        if action.type != "choose" or not sender:
            return
        name = self.tanks.names.setdefault(thread.id, action.payload["name"])
        yield ThreadItemReplacedEvent(item=sender.model_copy(update={"widget": choices([name], name)}))
        thread.title = f"{name}'s tank"
        await self.store.save_thread(thread, context)
        await hide(self.store, thread, context, f"<NAMED>{name}</NAMED>")
        yield self._message(thread, context, f"Hello, {name}.")

    def get_stream_options(self, thread: ThreadMetadata, context: ChatContext) -> StreamOptions:
        return StreamOptions(allow_cancel=False)

    async def to_message_content(self, _input: Attachment) -> Any:
        raise RuntimeError("no attachments")


# Like customer-support: an attachment store, a profile in front of the messages, actions in a table, dictation


class Uploads(AttachmentStore[ChatContext]):
    async def create_attachment(self, input: AttachmentCreateParams, context: ChatContext) -> Attachment:  # noqa: A002
        raise NotImplementedError

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        raise NotImplementedError


class Bookings:
    def __init__(self) -> None:
        self.rooms: dict[str, str] = {}


def build_desk(bookings: Bookings) -> Agent[AgentContext[ChatContext]]:
    @function_tool(description_override="Change the room.")
    async def change_room(ctx: RunContextWrapper[AgentContext[ChatContext]], room: str) -> dict[str, str]:
        bookings.rooms[ctx.context.thread.id] = room
        await ctx.context.stream(ClientEffectEvent(name="profile", data={"room": room}))
        return {"result": f"moved to {room}"}

    @function_tool(description_override="Show the breakfasts.")
    async def show_breakfasts(ctx: RunContextWrapper[AgentContext[ChatContext]]) -> dict[str, str]:
        await ctx.context.stream_widget(choices(["Tea", "Coffee"]))
        return {"result": "shown"}

    return Agent(
        name="Desk",
        model="gpt-test",
        tools=[change_room, show_breakfasts],
        tool_use_behavior=StopAtTools(stop_at_tool_names=[show_breakfasts.name]),
    )


class HotelServer(Server):
    def __init__(self, store: Store[ChatContext], bookings: Bookings | None = None, agent: Any = None) -> None:
        super().__init__(store, attachment_store=Uploads())
        self.client = OpenAI()
        self.bookings = bookings or Bookings()
        self.agent = agent or build_desk(self.bookings)
        self._handlers: dict[str, Callable[..., AsyncIterator[ThreadStreamEvent]]] = {"choose": self._choose_breakfast}

    async def respond(
        self, thread: ThreadMetadata, user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        title_task = asyncio.create_task(self._make_title(thread, user_message))
        room = self.bookings.rooms.get(thread.id, "none")
        profile = EasyInputMessageParam(
            type="message", role="user", content=[ResponseInputTextParam(type="input_text", text=f"<ROOM>{room}</ROOM>")]
        )
        desk = AgentContext(thread=thread, store=self.store, request_context=context)
        result = Runner.run_streamed(
            self.agent,
            [profile, *await self._input(thread, context)],
            context=desk,
            run_config=RunConfig(model_settings=ModelSettings(temperature=0.4)),
        )
        async for event in stream_agent_response(desk, result):
            yield event
        await title_task

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        if handler := self._handlers.get(action.type):
            async for event in handler(thread, action, sender, context):
                yield event

    async def _choose_breakfast(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        name = action.payload["name"]
        yield ThreadItemUpdated(item_id=sender.id, update=WidgetRootUpdated(widget=choices([name], name)))
        yield self._message(thread, context, f"{name} at eight.")
        await hide(self.store, thread, context, f"<BREAKFAST>{name}</BREAKFAST>")
        menu = WidgetItem(
            id=self.store.generate_item_id("message", thread, context),
            thread_id=thread.id,
            created_at=datetime.now(),  # noqa: DTZ005
            widget=Card(children=[Text(value=f"Menu with {name}")]),
        )
        yield ThreadItemDoneEvent(item=menu)

    async def transcribe(self, audio_input: AudioInput, context: ChatContext) -> TranscriptionResult:
        if audio_input.media_type != "audio/webm":
            raise HTTPException(status_code=400, detail="Unexpected audio format")
        audio = io.BytesIO(audio_input.data)
        audio.name = "audio.webm"
        transcription = self.client.audio.transcriptions.create(model="gpt-4o-transcribe", file=audio)
        return TranscriptionResult(text=transcription.text)


# Like metro-map: tools that return models, a client tool, entities in messages and as sources, a title that is stored at once


class Hut(BaseModel):
    id: str
    name: str


class Trails:
    def __init__(self) -> None:
        self.huts = {"h1": Hut(id="h1", name="Crow hut")}


class TrailsContext(AgentContext[ChatContext]):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    trails: Annotated[Trails, Field(exclude=True)]


class HutList(BaseModel):
    huts: list[Hut]


@function_tool(description_override="List the huts.")
async def list_huts(ctx: RunContextWrapper[TrailsContext]) -> HutList:
    await ctx.context.stream(ProgressUpdateEvent(text="Reading the map"))
    return HutList(huts=list(ctx.context.trails.huts.values()))


@function_tool(description_override="Show a route.")
async def show_route(ctx: RunContextWrapper[TrailsContext], route: list[Hut], text: str) -> None:
    sources = [
        Annotation(source=EntitySource(id=hut.id, title=hut.name, interactive=True), index=text.index(hut.name) + len(hut.name))
        for hut in route
    ]
    await ctx.context.stream(message(ctx.context.thread, ctx.context.generate_id("message"), text, *sources))


@function_tool(description_override="Get the huts that are selected in the page.")
async def get_selected_huts(ctx: RunContextWrapper[TrailsContext]) -> HutList:
    await ctx.context.stream(ProgressUpdateEvent(text="Asking the page"))
    ctx.context.client_tool_call = ClientToolCall(name="get_selected_huts", arguments={})
    return HutList(huts=[])


class HutConverter(Converter):
    def __init__(self, trails: Trails) -> None:
        self.trails = trails

    async def tag_to_message_content(self, tag: UserMessageTagContent) -> ResponseInputTextParam:
        hut = self.trails.huts.get(tag.data.get("hut", ""))
        return ResponseInputTextParam(type="input_text", text=f"<HUT>{hut.name if hut else 'unknown'}</HUT>")


trails_agent = Agent[TrailsContext](
    name="Guide",
    model="gpt-test",
    tools=[list_huts, show_route, get_selected_huts],
    tool_use_behavior=StopAtTools(stop_at_tool_names=[show_route.name, get_selected_huts.name]),
)


class TrailsServer(Server):
    def __init__(self, store: Store[ChatContext]) -> None:
        super().__init__(store)
        self.trails = Trails()
        self.thread_item_converter = HutConverter(self.trails)

    async def respond(
        self, thread: ThreadMetadata, item: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        title_task = asyncio.create_task(self._store_title(thread, item, context))
        trails = TrailsContext(thread=thread, store=self.store, trails=self.trails, request_context=context)
        result = Runner.run_streamed(trails_agent, await self._input(thread, context), context=trails)
        async for event in stream_agent_response(trails, result):
            yield event
        await title_task

    async def _store_title(self, thread: ThreadMetadata, item: UserMessageItem | None, context: ChatContext) -> None:
        await self._make_title(thread, item)
        await self.store.save_thread(thread, context=context)


# Like news-guide: one of several agents by the composer's tool, agents as tools, a header of the request


class LibraryContext(AgentContext[ChatContext]):
    model_config = ConfigDict(arbitrary_types_allowed=True)


@function_tool(description_override="Read the open book.")
async def read_open_book(ctx: RunContextWrapper[LibraryContext]) -> str:
    book = ctx.context.request_context.headers.get("book-id")
    if not book:
        raise ValueError("No book is open.")
    return f"Chapter one of {book}"


@function_tool(description_override="Show the readings.")
async def show_readings(ctx: RunContextWrapper[AgentContext[ChatContext]], titles: list[str]) -> None:
    await ctx.context.stream_widget(choices(titles))
    await ctx.context.stream(message(ctx.context.thread, ctx.context.generate_id("message"), "These readings:"))


readings_agent = Agent[AgentContext[ChatContext]](
    name="Readings",
    model="gpt-readings",
    tools=[show_readings],
    tool_use_behavior=StopAtTools(stop_at_tool_names=[show_readings.name]),
)
riddle_agent = Agent[AgentContext[ChatContext]](name="Riddles", model="gpt-riddles")
library_agent = Agent[LibraryContext](
    name="Librarian",
    model="gpt-test",
    tools=[
        read_open_book,
        readings_agent.as_tool(tool_name="delegate_to_readings", tool_description="Delegate questions about readings."),
        riddle_agent.as_tool(tool_name="delegate_to_riddles", tool_description="Delegate riddles."),
    ],
    tool_use_behavior=StopAtTools(stop_at_tool_names=["delegate_to_readings"]),
)


class LibraryServer(Server):
    async def respond(
        self, thread: ThreadMetadata, item: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        title_task = asyncio.create_task(self._make_title(thread, item))
        agent, agent_context = self._select_agent(thread, item, context)
        result = Runner.run_streamed(agent, await self._input(thread, context), context=agent_context)
        async for event in stream_agent_response(agent_context, result):
            yield event
        await title_task

    def _select_agent(
        self, thread: ThreadMetadata, item: UserMessageItem | None, context: ChatContext
    ) -> tuple[Agent[Any], AgentContext[ChatContext]]:
        tool = item.inference_options.tool_choice if item and item.inference_options else None
        if tool and tool.id == "riddles":
            return riddle_agent, AgentContext(thread=thread, store=self.store, request_context=context)
        return library_agent, LibraryContext(thread=thread, store=self.store, request_context=context)
