"""The visitor cookie: it tells anonymous visitors apart. Signed, so that nobody can make up another visitor's."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, has_request_context, request, session
from flask.sessions import SecureCookieSessionInterface

from chatkit.identity.user import User

VISITOR_LIFETIME = timedelta(days=365)


def known_visitor() -> User | None:
    """The visitor that the cookie names, also where a user is signed in."""
    return User("anonymous", session["visitor"]) if "visitor" in session else None


def forget_visitor() -> None:
    """Have the browser be a new visitor from now on."""
    session.pop("visitor", None)


def new_visitor() -> User:
    """A visitor that no one has been before. The response sets the cookie."""
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
