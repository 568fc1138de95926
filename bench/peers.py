"""Minimal implementations of the sessions endpoint for comparison, without our checks and logs.

``per_call`` creates an HTTP client for each call, as the backend of OpenAI's starter app does; ``pooled`` reuses OpenAI's SDK.
"""

from __future__ import annotations

import os
import uuid

import httpx2
import openai
from fastapi import FastAPI

PATH = "/api/chatkit/sessions"
BASE, KEY, WORKFLOW = (os.environ.get(name, "") for name in ("CHATKIT_API_BASE", "OPENAI_API_KEY", "CHATKIT_WORKFLOW_ID"))

per_call = FastAPI()
pooled = FastAPI()
_sdk = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY or "none", timeout=10)


@per_call.post(PATH)
async def create_with_a_client_per_call() -> dict[str, str]:
    async with httpx2.AsyncClient(base_url=BASE, timeout=10) as client:
        response = await client.post(
            "/v1/chatkit/sessions",
            headers={"Authorization": f"Bearer {KEY}", "OpenAI-Beta": "chatkit_beta=v1"},
            json={"workflow": {"id": WORKFLOW}, "user": str(uuid.uuid4())},
        )
    return {"client_secret": response.json()["client_secret"]}


@pooled.post(PATH)
async def create_with_the_sdk() -> dict[str, str]:
    session = await _sdk.beta.chatkit.sessions.create(user=str(uuid.uuid4()), workflow={"id": WORKFLOW})
    return {"client_secret": session.client_secret}


@per_call.get("/healthz")
@pooled.get("/healthz")
async def alive() -> dict[str, bool]:
    return {"alive": True}
