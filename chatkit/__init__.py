"""A Flask service that gives a web frontend its ChatKit sessions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pkgutil import extend_path
from typing import cast

from flask import Response
from werkzeug.middleware.proxy_fix import ProxyFix

from chatkit import health, host_page, identity, logs, origins, problems, sessions
from chatkit.issuers import make_issuer
from chatkit.limits.rate import Limits
from chatkit.request_body import CHAT_PATH, MAX_CHAT_BYTES
from chatkit.settings import Backend, Settings, load
from chatkit.tokens import TokenVerifier
from chatkit.web.asgi import Adapter, AsgiFlask

# OpenAI's server package is called chatkit as well. This joins the two: what is not found here is found there.
__path__ = extend_path(__path__, __name__)

log = logging.getLogger(__name__)

MAINTENANCE_SECONDS = 30


def create_app(settings: Settings | None = None) -> AsgiFlask:
    """The application, with the settings of this process unless others are given.

    Raises:
        SettingsError: when the configured backend can't work with these settings at all.
    """
    settings = settings or load()
    for notice in settings.notices:
        log.warning("%s", notice)
    issuer = make_issuer(settings)
    app = AsgiFlask(__name__, static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False  # a wrong path is a 404 in the envelope, not a redirect
    if settings.development:
        # A page of a stranger's site could otherwise reach this machine under that site's name (DNS rebinding).
        app.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1"]

    app.asgi = Adapter(
        app,
        threads=settings.threads,
        proxy_hops=settings.proxy_hops,
        drain_seconds=settings.drain_seconds,
        stop_seconds=settings.stop_seconds,
        max_body_bytes=_max_body_bytes,
        missing=issuer.missing,
    )
    problems.register(app)
    identity.register(app, settings.secret_key, settings.secret_key_fallbacks)
    origins.register(app, settings.allowed_origins)
    who = identity.Identity(TokenVerifier(settings), required=settings.auth_required)
    limits = Limits(app, settings)
    app.register_blueprint(health.blueprint(issuer))
    if settings.host_page:
        app.register_blueprint(host_page.blueprint(settings.backend, settings.domain_key))
    hand_over = None
    if settings.backend is Backend.SELFHOSTED:
        from chatkit import conversation
        from chatkit.issuers.selfhosted import SelfhostedIssuer

        selfhosted = cast(SelfhostedIssuer, issuer)
        app.register_blueprint(conversation.make_blueprint(settings, selfhosted, limits))
        app.asgi.background.append(partial(_repeat, selfhosted.maintain))
        hand_over = selfhosted.hand_over if settings.auth_keep_conversations else None
    app.register_blueprint(sessions.blueprint(who, limits, issuer, hand_over))
    app.after_request(_keep_private)

    hops = settings.proxy_hops
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    app.wsgi_app = logs.RequestLog(app.wsgi_app)  # type: ignore[method-assign]
    return app


async def _repeat(maintain: Callable[[], None]) -> None:
    """Call ``maintain``, which may take its time, now and every ``MAINTENANCE_SECONDS``."""
    while True:
        await asyncio.to_thread(maintain)
        await asyncio.sleep(MAINTENANCE_SECONDS)


def _max_body_bytes(path: str) -> int:
    """The most that the body of a request to ``path`` may have. Views that want less say so themselves."""
    return MAX_CHAT_BYTES if path == CHAT_PATH else sessions.MAX_BODY_BYTES


def _keep_private(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
