"""The caller of the current request, identified by a verified token or a signed cookie only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flask import request

from chatkit.identity.bearer_tokens import TokenVerifier
from chatkit.identity.user import User
from chatkit.identity.visitor_cookie import known_visitor, new_visitor
from chatkit.web.errors import AuthenticationRequired, InvalidToken

MAX_TOKEN = 8 * 1024


@dataclass(frozen=True)
class Caller:
    user: User
    """The signed-in user, else the visitor."""
    visitor: User | None
    """The visitor of the request's cookie; ``None`` without a cookie."""


class Identity:
    """Identifies callers.

    Args:
        tokens: verifies the bearer tokens of signed-in users.
        required: whether visitors are rejected.
    """

    def __init__(self, tokens: TokenVerifier, *, required: bool) -> None:
        self._tokens = tokens
        self._required = required

    def caller(self) -> Caller:
        """Return the caller of the current request: the token's user, else the cookie's visitor, else a new visitor.

        Raises:
            InvalidToken: the token is invalid.
            SignInUnavailable: the token can't be verified now.
            AuthenticationRequired: there is no token, and visitors are rejected.
        """
        visitor = known_visitor()
        authorization = request.headers.get("Authorization")
        if authorization is not None and self._is_for_this_service(authorization):
            return Caller(self._tokens.user(_bearer_token(authorization)), visitor)
        if self._required:
            raise AuthenticationRequired("the request has no token")
        return Caller(visitor or new_visitor(), visitor)

    def _is_for_this_service(self, authorization: str) -> bool:
        """Whether the header is meant for this service.

        Without sign-in, another scheme may be for a proxy in front, such as the password of a staging site. A bearer token is
        rejected even then: the frontend believes that the user is signed in, and must not silently get a visitor's session.
        """
        return self._tokens.can_verify or re.match(r"bearer\b", authorization, re.IGNORECASE) is not None


def _bearer_token(authorization: str) -> str:
    """Return the token of an ``Authorization`` header (RFC 6750, 2.1).

    Repeated headers are joined with commas, which a token can't contain.
    """
    match = re.fullmatch(r"(?i:bearer) +([A-Za-z0-9._-]+)", authorization)
    if match is None or len(match[1]) > MAX_TOKEN:
        raise InvalidToken("Authorization is not 'Bearer' and one token of at most 8 KiB")
    return match[1]
