"""The visitor cookie, which identifies anonymous visitors. It is signed, so that it can't be forged."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from flask import Flask, Request, Response, has_request_context, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from itsdangerous import BadSignature, URLSafeTimedSerializer

from chatkit.identity.user import User

VISITOR_LIFETIME = timedelta(days=365)


def known_visitor() -> User | None:
    """Return the visitor of the request's cookie, also for a signed-in user."""
    return User("anonymous", session["visitor"]) if "visitor" in session else None


def forget_visitor() -> None:
    """Remove the visitor from the cookie."""
    session.pop("visitor", None)


def new_visitor() -> User:
    """Create a visitor. The response sets the cookie."""
    session["visitor"] = str(uuid.uuid4())
    session.permanent = True
    return User("anonymous", session["visitor"])


def register(app: Flask, secret_key: str, fallbacks: Sequence[str]) -> None:
    """Set up the cookie, signed with ``secret_key``. Signatures made with ``fallbacks`` are accepted as well."""
    app.secret_key = secret_key
    app.config["SECRET_KEY_FALLBACKS"] = list(fallbacks)
    app.permanent_session_lifetime = VISITOR_LIFETIME
    app.session_interface = _VisitorCookie()


def _sha256(string: bytes = b"") -> Any:
    return hashlib.sha256(string)


class _VisitorCookie(SecureCookieSessionInterface):
    """Flask's signed cookie, with attributes that depend on the request.

    A frontend on another site needs ``SameSite=None``, which browsers accept only with ``Secure``, and many of them only with
    ``Partitioned`` (CHIPS). All others get ``Lax``. Over HTTPS the name begins with ``__Host-``, so that a sibling subdomain
    can't set the cookie.
    """

    salt = "chatkit.visitor"
    digest_method = staticmethod(_sha256)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession:
        """As in Flask, but accept a cookie from the future: the clocks of two machines differ, and a clock may be set back."""
        cookie = request.cookies.get(self.get_cookie_name(app))
        if not cookie:  # requests of the chat component have none
            return self.session_class()
        serializer = cast(URLSafeTimedSerializer, self.get_signing_serializer(app))
        try:
            data, signed_at = serializer.loads(cookie, return_timestamp=True)
        except BadSignature:
            return self.session_class()
        expired = datetime.now(UTC) - signed_at > VISITOR_LIFETIME
        return self.session_class() if expired else self.session_class(data)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """As in Flask, but don't compute the cookie's attributes when there is nothing to send."""
        if session or session.accessed or session.modified:
            super().save_session(app, session, response)

    def get_cookie_name(self, app: Flask) -> str:
        return "__Host-chatkit_visitor" if has_request_context() and request.is_secure else "chatkit_visitor"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or _cross_site()

    def get_cookie_samesite(self, app: Flask) -> str:
        return "None" if _cross_site() else "Lax"

    def get_cookie_partitioned(self, app: Flask) -> bool:
        return _cross_site()


def _cross_site() -> bool:
    """Whether the request comes from a page on another site.

    For browsers without ``Sec-Fetch-Site`` (Safari before 16.4, Firefox before 90) the host names are compared. That counts a
    sibling subdomain as another site, which costs nothing over HTTPS. Over HTTP the browser would reject the cookie.
    """
    declared = request.headers.get("Sec-Fetch-Site")
    if declared is not None:
        return declared == "cross-site"
    origin = request.headers.get("Origin")
    # Not request.host, which raises for some values of the header.
    return bool(origin) and request.is_secure and _host_name(origin) != _host_name(f"//{request.headers.get('Host', '')}")


def _host_name(address: str | None) -> str | None:
    try:
        return urlsplit(address).hostname if address else None
    except ValueError:  # such as "https://["
        return None
