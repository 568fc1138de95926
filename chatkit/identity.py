"""Who is asking. Verified here, on the server: nothing that a request merely claims decides who somebody is."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, has_request_context, request, session
from flask.sessions import SecureCookieSessionInterface

from chatkit.problems import AuthenticationRequired, InvalidToken
from chatkit.tokens import TokenVerifier
from chatkit.users import User

MAX_TOKEN = 8 * 1024
VISITOR_LIFETIME = timedelta(days=365)


class Identity:
    """Knows who sends the current request.

    Args:
        tokens: checks the bearer tokens of those who are signed in.
        required: whether everybody else is turned away.
    """

    def __init__(self, tokens: TokenVerifier, *, required: bool) -> None:
        self._tokens = tokens
        self._required = required

    def current_user(self) -> User:
        """The user whose token came along; else the visitor that the cookie names, or a new one, who gets a cookie.

        Raises:
            InvalidToken: a token came that proves nothing.
            SignInUnavailable: a token came that can't be checked now.
            AuthenticationRequired: none came, and visitors are turned away.
        """
        authorization = request.headers.get("Authorization")
        if authorization is not None and self._is_for_us(authorization):
            return self._tokens.user(_bearer_token(authorization))
        if self._required:
            raise AuthenticationRequired("no token came")
        return known_visitor() or _new_visitor()

    def _is_for_us(self, authorization: str) -> bool:
        """Whether this header is about our users.

        Where nobody can sign in, another scheme may be for a proxy in front (a password for a staging site, say). A token never
        is: its bearer believes to be somebody, and must not become an anonymous visitor without a word.
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


def known_visitor() -> User | None:
    """The visitor that the cookie names, whoever is signed in besides."""
    return User("anonymous", session["visitor"]) if "visitor" in session else None


def forget_visitor() -> None:
    """Make whoever comes next with this browser a new visitor, unless signed in."""
    session.pop("visitor", None)


def _new_visitor() -> User:
    session["visitor"] = str(uuid.uuid4())
    session.permanent = True
    return User("anonymous", session["visitor"])


def register(app: Flask, secret_key: str, fallbacks: Sequence[str]) -> None:
    """Give ``app`` the visitor's cookie, signed with ``secret_key``; signatures of ``fallbacks`` are accepted as well."""
    app.secret_key = secret_key
    app.config["SECRET_KEY_FALLBACKS"] = list(fallbacks)
    app.permanent_session_lifetime = VISITOR_LIFETIME
    app.session_interface = _VisitorCookie()


def _sha256(string: bytes = b"") -> Any:
    return hashlib.sha256(string)


class _VisitorCookie(SecureCookieSessionInterface):
    """Flask's signed cookie, with the attributes that let a browser keep it and send it back in the situation at hand.

    A frontend on another site needs ``SameSite=None``, which browsers take only with ``Secure``, and many of them only with
    ``Partitioned`` (CHIPS). Everybody else gets ``Lax``. Over HTTPS the name begins with ``__Host-``, so that no neighbouring
    subdomain can plant a visitor of its own.
    """

    salt = "chatkit.visitor"
    digest_method = staticmethod(_sha256)

    def get_cookie_name(self, app: Flask) -> str:
        return "__Host-chatkit_visitor" if has_request_context() and request.is_secure else "chatkit_visitor"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or _cross_site()

    def get_cookie_samesite(self, app: Flask) -> str:
        return "None" if _cross_site() else "Lax"

    def get_cookie_partitioned(self, app: Flask) -> bool:
        return _cross_site()


def _cross_site() -> bool:
    """Whether the page that asks is on another site than this service.

    Browsers say so in ``Sec-Fetch-Site``. Those that don't yet (Safari before 16.4, Firefox before 90) get it guessed from the
    host names: taking a neighbour for a stranger costs nothing over HTTPS, and over HTTP they would refuse the cookie.
    """
    declared = request.headers.get("Sec-Fetch-Site")
    if declared is not None:
        return declared == "cross-site"
    origin = request.headers.get("Origin")
    # The header itself, because request.host and request.host_url raise for some of what may be in it.
    return bool(origin) and request.is_secure and _host_name(origin) != _host_name(f"//{request.headers.get('Host', '')}")


def _host_name(address: str | None) -> str | None:
    try:
        return urlsplit(address).hostname if address else None
    except ValueError:  # such as "https://["
        return None
