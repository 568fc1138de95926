"""Who is asking. Verified here, on the server: nothing that a request merely claims decides who somebody is."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, has_request_context, request, session
from flask.sessions import SecureCookieSessionInterface

from chatkit.users import User

VISITOR_LIFETIME = timedelta(days=365)


def current_user() -> User:
    """The user of the current request: the visitor that its cookie names, or a new one, who gets a cookie."""
    if "visitor" not in session:
        session["visitor"] = str(uuid.uuid4())
        session.permanent = True
    return User("anonymous", session["visitor"])


def register(app: Flask, secret_key: str) -> None:
    """Give ``app`` the signed visitor's cookie."""
    app.secret_key = secret_key
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
    return bool(origin) and request.is_secure and urlsplit(origin).hostname != urlsplit(request.host_url).hostname
