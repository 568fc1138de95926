"""Attachments of user messages."""

from __future__ import annotations

import json
from typing import Any

import requests

from tests.support.chat import Caller

OFFERED = {"CHATKIT_COMPOSER": json.dumps({"attachments": {"enabled": True}})}
PDF = b"%PDF-1.7 a report"


def announce(caller: Caller, name: str, media_type: str, size: int) -> requests.Response:
    return caller.post("attachments.create", name=name, mime_type=media_type, size=size)


def put(upload: dict[str, Any], data: bytes) -> requests.Response:
    """Upload as ChatKit does."""
    return requests.request(upload["method"], upload["url"], data=data, headers=upload["headers"], timeout=30)


def attach(caller: Caller, name: str, media_type: str, data: bytes) -> str:
    """Upload a file and return the id of the attachment."""
    response = announce(caller, name, media_type, len(data))
    assert response.status_code == 200, response.text
    attachment = response.json()
    uploaded = put(attachment["upload_descriptor"], data)
    assert (uploaded.status_code, uploaded.content) == (204, b"")
    attachment_id: str = attachment["id"]
    return attachment_id


def refusal(response: requests.Response) -> tuple[int, str, str]:
    return response.status_code, response.json()["code"], response.json()["message"]
