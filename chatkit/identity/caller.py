"""Who sends the current request, verified on the server: nothing that a request merely claims decides it."""

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
    """Who sends a request."""

    user: User
    """The signed-in user, else the visitor."""
    visitor: User | None
    """The visitor that the request's cookie names; ``None`` without a cookie."""


class Identity:
    """Verifies callers.

    Args:
        tokens: checks the bearer tokens of signed-in users.
        required: whether everybody else is refused.
    """

    def __init__(self, tokens: TokenVerifier, *, required: bool) -> None:
        self._tokens = tokens
        self._required = required

    def caller(self) -> Caller:
        """The caller of the current request: the token's user, else the cookie's visitor, else a new visitor with a new cookie.

        Raises:
            InvalidToken: the token proves nothing.
            SignInUnavailable: the token can't be checked now.
            AuthenticationRequired: there is no token, and visitors are refused.
        """
        visitor = known_visitor()
        authorization = request.headers.get("Authorization")
        if authorization is not None and self._is_for_us(authorization):
            return Caller(self._tokens.user(_bearer_token(authorization)), visitor)
        if self._required:
            raise AuthenticationRequired("the request has no token")
        return Caller(visitor or new_visitor(), visitor)

    def _is_for_us(self, authorization: str) -> bool:
        """Whether this header is about our users.

        Where sign-in is not set up, another scheme may be for a proxy in front, such as the password of a staging site. A
        token never is: the frontend takes its user for signed in, and must not silently get an anonymous visitor.
        """
        return self._tokens.can_verify or re.match(r"bearer\b", authorization, re.IGNORECASE) is not None


def _bearer_token(authorization: str) -> str:
    """The token in an ``Authorization`` header (RFC 6750, 2.1).

    A server joins several headers of this name with commas, which no token has in it.
    """
    match = re.fullmatch(r"(?i:bearer) +([A-Za-z0-9._-]+)", authorization)
    if match is None or len(match[1]) > MAX_TOKEN:
        raise InvalidToken("Authorization is not 'Bearer' and one token of at most 8 KiB")
    return match[1]
