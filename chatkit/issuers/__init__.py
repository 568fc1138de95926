"""Who mints a session: the interface, and the choice between the two that have it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from chatkit.settings import Backend, Settings
from chatkit.users import User


@dataclass(frozen=True)
class Session:
    """A minted session, on its way to the caller.

    ``client_secret`` is for the caller alone: no log, no database, no ``repr`` holds it.
    """

    session_id: str
    client_secret: str = field(repr=False)
    expires_at: datetime
    """In UTC, at most 600 s from now."""


class Issuer(Protocol):
    """Mints sessions for one backend, and ends them."""

    knows_owners: bool
    """Whether ``end`` knows by itself whose a session is. Otherwise its caller has to."""

    def issue(self, user: User) -> Session:
        """A new session for ``user``.

        Raises:
            chatkit.problems.Problem: a row of the contract's table.
        """

    def end(self, session_id: str, user: User) -> None:
        """End a session of ``user``, so that its secret opens nothing any more. One that is over stays over.

        Raises:
            chatkit.problems.Problem: ``NotFound`` where it is not this user's; else a row of the contract's table.
        """

    def missing(self) -> list[str]:
        """What keeps this issuer from issuing, each by the name of its setting; empty when it is ready."""


def make_issuer(settings: Settings) -> Issuer:
    """The issuer of the configured backend. Only that one is imported: the other may cost seconds."""
    if settings.backend is Backend.HOSTED:
        from chatkit.issuers.hosted import HostedIssuer

        return HostedIssuer(settings)
    from chatkit.issuers.selfhosted import SelfhostedIssuer

    return SelfhostedIssuer.open(settings)
