"""A verified end user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Primitive = str | int | float | bool


@dataclass(frozen=True)
class User:
    """A visitor or a signed-in user."""

    kind: Literal["anonymous", "user"]
    subject: str
    agent: str | None = None
    """The name of the user's agent (``CHATKIT_AGENT_CLAIM``); ``None`` for the default."""
    claims: Mapping[str, Primitive] = field(default_factory=dict, hash=False)
    """The claims that the agent may know (``CHATKIT_STATE_CLAIMS``), by name."""

    @property
    def id(self) -> str:
        """The identifier at OpenAI and in the database. Visitors and signed-in users never share one."""
        return f"{self.kind}:{self.subject}"
