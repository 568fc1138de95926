"""Users with a session and a conversation, through Flask's test client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from tests.support.chat import user_input
from tests.support.endpoint import ENDPOINT
from tests.support.identity_provider import shared

CHAT = "/api/chatkit"


@dataclass
class ChatUser:
    """A user with a client, a session and, if the backend has a chat, a conversation."""

    client: FlaskClient
    headers: dict[str, str]
    user: str = ""
    session_id: str = ""
    secret: str = ""
    thread: str = ""
    item: str = ""
    run: str = "run_5d0f8c1e"

    def create_session(self) -> None:
        data = self.client.post(ENDPOINT, headers=self.headers).get_json()["data"]
        self.session_id, self.secret = data["session_id"], data["client_secret"]

    def ids(self) -> list[str]:
        known = [self.user, self.user.partition(":")[2], self.session_id, self.thread, self.item]
        return [value for value in known if value]


def chat_user(app: Flask, kind: str, name: str) -> ChatUser:
    headers = {"Authorization": f"Bearer {shared(sub=f'{name}-5d0f8c1e')}"} if kind == "user" else {}
    caller = ChatUser(app.test_client(), headers)
    caller.create_session()
    caller.user = f"user:{name}-5d0f8c1e"
    if kind == "anonymous":
        with caller.client.session_transaction() as cookie:
            caller.user = f"anonymous:{cookie['visitor']}"
    return caller


def begin_conversation(caller: ChatUser, words: str) -> None:
    body = {"type": "threads.create", "params": {"input": user_input(f"tool {words}")}}
    lines = chat(caller, body).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    caller.thread = events[0]["thread"]["id"]
    caller.item = next(event["item"]["id"] for event in events if event["type"] == "thread.item.done")


def chat(caller: ChatUser, body: Any, **headers: str) -> Any:
    sent = {"Authorization": f"Bearer {caller.secret}", **headers}
    return caller.client.post(CHAT, json=body, headers=sent, buffered=True)
