"""Who a user is, for everything behind the question who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class User:
    """One end user, verified: an anonymous visitor, or somebody who is signed in."""

    kind: Literal["anonymous", "user"]
    subject: str

    @property
    def id(self) -> str:
        """The identifier for issuers and storage. Users of different kinds never share one, whatever their subjects are."""
        return f"{self.kind}:{self.subject}"
