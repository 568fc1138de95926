"""Conversion of the threads and items of OpenAI's API to those of its server package.

Nothing is left out: an item that can't be converted, or not completely, keeps its original.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import TypeAdapter

from chatkit.types import (
    ActiveStatus,
    Annotation,
    AssistantMessageContent,
    AssistantMessageItem,
    ClientToolCallItem,
    CustomTask,
    EndOfTurnItem,
    FileSource,
    InferenceOptions,
    TaskItem,
    ThoughtTask,
    ThreadItem,
    ThreadMetadata,
    ThreadStatus,
    URLSource,
    UserMessageItem,
    UserMessageTextContent,
    WidgetItem,
    Workflow,
    WorkflowItem,
)

MAX_THREAD_ID, MAX_ITEM_ID = 64, 128  # the database's
MAX_TIMESTAMP = 2**33  # in the year 2242
MAX_TYPE = 60  # characters of an unknown type in a report

_EPOCH = datetime.fromtimestamp(0, UTC)
_status: TypeAdapter[Any] = TypeAdapter(ThreadStatus)
_item: TypeAdapter[Any] = TypeAdapter(ThreadItem)
_NOT_AS_DESCRIBED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What the converters below raise for an item that is not as OpenAI's API description has it."""


@dataclass(frozen=True)
class ConvertedItem:
    item: ThreadItem
    original: Any = None
    """What OpenAI sent, if it was not converted completely."""
    losses: tuple[str, ...] = ()
    """What was not converted, for the report; never message content."""


def convert_thread(resource: Any) -> ThreadMetadata:
    """Convert a ``ThreadResource``. What is not valid is left out, except the id.

    Raises:
        ValueError: there is no valid id.
    """
    if not isinstance(resource, dict) or not _is_id(resource.get("id"), MAX_THREAD_ID):
        raise ValueError("a thread without a valid id")
    title = resource.get("title")
    try:
        status = _status.validate_python(resource.get("status"))
    except ValueError:
        status = ActiveStatus()
    return ThreadMetadata(
        id=resource["id"],
        created_at=_time(resource.get("created_at")) or _EPOCH,
        title=title if isinstance(title, str) else None,
        status=status,
    )


def convert_item(resource: Any, thread_id: str, previous: datetime, taken: Collection[str] = ()) -> ConvertedItem:
    """Convert a ``ThreadItem`` of the API.

    Args:
        resource: what OpenAI sent.
        thread_id: the thread that it was listed for.
        previous: the time of the item before; used if this one has none.
        taken: the ids of the items before; not used if this one has none.
    """
    members = resource if isinstance(resource, dict) else {}
    losses: list[str] = []
    created_at = _time(members.get("created_at"))
    if created_at is None:
        losses.append("its time")
    base: dict[str, Any] = {"id": _item_id(resource, taken), "thread_id": thread_id, "created_at": created_at or previous}
    type_ = members.get("type")
    convert, known = _CONVERTERS.get(type_, (None, ())) if isinstance(type_, str) else (None, ())
    try:
        if convert is None:
            losses.append(
                f"an item of the unknown type {type_[:MAX_TYPE]!r}" if isinstance(type_, str) else "an item without a type"
            )
            item: ThreadItem = EndOfTurnItem(**base)
        else:
            item = convert(base, members, losses)
            if _has_more(members, *_COMMON_MEMBERS, *known):
                losses.append("an unknown member")
            _item.validate_json(item.model_dump_json())  # the chat could not read a thread with one that is nested too deeply
    except _NOT_AS_DESCRIBED:
        losses.append(f"a malformed {type_}")
        # Of all types, this one is neither displayed nor sent to a model.
        item = EndOfTurnItem(**base)
    return ConvertedItem(item, resource, tuple(dict.fromkeys(losses))) if losses else ConvertedItem(item)


def _is_id(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length and re.fullmatch(r"[!-~]+", value) is not None


def _has_more(resource: dict[str, Any], *known: str) -> bool:
    """Return whether there is something in the resource beside the members that are converted."""
    return any(value not in (None, "", [], {}) for name, value in resource.items() if name not in known)


def _item_id(resource: Any, taken: Collection[str]) -> str:
    """Return the item's id, or one derived from its content if it has none. Equal items get different ones."""
    id_ = resource.get("id") if isinstance(resource, dict) else None
    if _is_id(id_, MAX_ITEM_ID):
        return str(id_)
    digest = hashlib.sha256(json.dumps(resource, sort_keys=True).encode()).hexdigest()
    id_, number = f"imported_{digest[:32]}", 1
    while id_ in taken:
        number += 1
        id_ = f"imported_{digest[:32]}_{number}"
    return id_


def _time(value: Any) -> datetime | None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_TIMESTAMP
    return datetime.fromtimestamp(value, UTC) if valid else None


def _user_message(base: dict[str, Any], resource: dict[str, Any], losses: list[str]) -> ThreadItem:
    texts: list[str] = []
    quotations: list[str] = []
    for part in resource["content"]:
        type_, text = part.get("type"), part.get("text")
        if isinstance(text, str):
            (quotations if type_ == "quoted_text" else texts).append(text)
        if type_ not in ("input_text", "quoted_text") or not isinstance(text, str) or _has_more(part, "type", "text"):
            losses.append("a part of a message")
    attachments = resource.get("attachments") or []
    if attachments:
        losses.append("attachments")
        if not texts:
            texts.append("(" + ", ".join(str(attachment["name"]) for attachment in attachments) + ")")
    options = resource.get("inference_options") or {}
    if _has_more(options, "tool_choice", "model") or _has_more(options.get("tool_choice") or {}, "id"):
        losses.append("inference options")
    return UserMessageItem(
        **base,
        content=[UserMessageTextContent(text=text) for text in texts],
        quoted_text="\n".join(quotations) or None,
        inference_options=InferenceOptions.model_validate(options),
    )


def _assistant_message(base: dict[str, Any], resource: dict[str, Any], losses: list[str]) -> ThreadItem:
    content = []
    for part in resource["content"]:
        is_text = isinstance(part.get("text"), str)
        if part.get("type") != "output_text" or not is_text or _has_more(part, "type", "text", "annotations"):
            losses.append("a part of a message")
        if is_text:
            annotations = [_annotation(annotation, losses) for annotation in part.get("annotations") or []]
            known = [annotation for annotation in annotations if annotation]
            content.append(AssistantMessageContent(text=part["text"], annotations=known))
    return AssistantMessageItem(**base, content=content)


def _annotation(resource: Any, losses: list[str]) -> Annotation | None:
    try:
        source = resource["source"]
        if _has_more(resource, "type", "source") or _has_more(source, "type", "url", "filename"):
            losses.append("an annotation")
        if source["type"] == "url":
            return Annotation(source=URLSource(url=source["url"], title=source["url"]))
        if source["type"] == "file":
            return Annotation(source=FileSource(filename=source["filename"], title=source["filename"]))
    except _NOT_AS_DESCRIBED:
        pass
    losses.append("an annotation")
    return None


def _widget(base: dict[str, Any], resource: dict[str, Any], losses: list[str]) -> ThreadItem:
    widget = json.loads(resource["widget"])
    item = WidgetItem(**base, widget=widget)
    if item.widget.model_dump(mode="json", exclude_unset=True) != widget:
        losses.append("a part of a widget")
    return item


_CALL_STATUS: dict[str, Literal["pending", "completed"]] = {"in_progress": "pending", "completed": "completed"}


def _client_tool_call(base: dict[str, Any], resource: dict[str, Any], losses: list[str]) -> ThreadItem:
    output = resource.get("output")
    try:
        output = json.loads(output) if isinstance(output, str) else output
    except ValueError:
        losses.append("the JSON of a tool's output")  # the text is kept
    return ClientToolCallItem(
        **base,
        status=_CALL_STATUS[resource["status"]],
        call_id=resource["call_id"],
        name=resource["name"],
        arguments=json.loads(resource["arguments"]),
        output=output,
    )


def _task(resource: dict[str, Any], type_: Any, losses: list[str]) -> CustomTask | ThoughtTask:
    if type_ == "thought":
        return ThoughtTask(title=resource.get("heading"), content=resource.get("summary") or "")
    if type_ != "custom":
        losses.append("the type of a task")
    return CustomTask(title=resource.get("heading"), content=resource.get("summary"))


def _single_task(base: dict[str, Any], resource: dict[str, Any], losses: list[str]) -> ThreadItem:
    return TaskItem(**base, task=_task(resource, resource["task_type"], losses))


def _task_group(base: dict[str, Any], resource: dict[str, Any], losses: list[str]) -> ThreadItem:
    tasks = [_task(task, task["type"], losses) for task in resource["tasks"]]
    if any(_has_more(task, "type", "heading", "summary") for task in resource["tasks"]):
        losses.append("a part of a task")
    thoughts = bool(tasks) and all(isinstance(task, ThoughtTask) for task in tasks)
    return WorkflowItem(**base, workflow=Workflow(type="reasoning" if thoughts else "custom", tasks=list(tasks)))


_COMMON_MEMBERS = ("id", "object", "created_at", "thread_id", "type")
_CONVERTERS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any], list[str]], ThreadItem], tuple[str, ...]]] = {
    "chatkit.user_message": (_user_message, ("content", "attachments", "inference_options")),
    "chatkit.assistant_message": (_assistant_message, ("content",)),
    "chatkit.widget": (_widget, ("widget",)),
    "chatkit.client_tool_call": (_client_tool_call, ("status", "call_id", "name", "arguments", "output")),
    "chatkit.task": (_single_task, ("task_type", "heading", "summary")),
    "chatkit.task_group": (_task_group, ("tasks",)),
}
"""For each type, the function that converts it and the members that it converts."""
