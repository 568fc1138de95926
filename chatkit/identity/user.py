"""Who a user is, for everything behind the question who is asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Primitive = str | int | float | bool


@dataclass(frozen=True)
class User:
    """One end user, verified: an anonymous visitor, or somebody who is signed in."""

    kind: Literal["anonymous", "user"]
    subject: str
    agent: str | None = None
    """The name of the agent that this user is for; ``None`` is everybody else's."""
    claims: Mapping[str, Primitive] = field(default_factory=dict, hash=False)
    """What the operator lets the agent know of this user (``CHATKIT_STATE_CLAIMS``), by the names of the claims."""

    @property
    def id(self) -> str:
        """The identifier for issuers and storage. Users of different kinds never share one, whatever their subjects are."""
        return f"{self.kind}:{self.subject}"
