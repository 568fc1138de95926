"""A Flask service that issues ChatKit sessions to a web frontend."""

from __future__ import annotations

import logging
from pkgutil import extend_path

from flask import Response

from chatkit import commands
from chatkit.backends import open_backend
from chatkit.endpoints import health, host_page, sessions
from chatkit.identity import visitor_cookie
from chatkit.identity.bearer_tokens import TokenVerifier
from chatkit.identity.caller import Identity
from chatkit.limits.rate import Limits
from chatkit.settings import Settings, load
from chatkit.web import cors, logs
from chatkit.web.asgi import Adapter, AsgiFlask
from chatkit.web.errors import register_error_handlers
from chatkit.web.proxy_fix import ProxyFix
from chatkit.web.request_body import CHAT_PATH, MAX_CHAT_BYTES

# OpenAI's server package is also named chatkit. This merges the two: submodules not found here are imported from there.
__path__ = extend_path(__path__, __name__)

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> AsgiFlask:
    """Create the application, by default with the settings of this process.

    Raises:
        SettingsError: the configured backend can't work with these settings.
    """
    settings = settings or load()
    for notice in settings.notices:
        log.warning("%s", notice)
    app = AsgiFlask(__name__, static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False  # respond to a wrong path with a 404 in the envelope, not with a redirect
    if settings.development:
        # Against DNS rebinding, with which a page of another site could reach this machine.
        app.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1"]

    limits = Limits(settings)
    backend = open_backend(settings, limits)
    app.asgi = Adapter(
        app,
        threads=settings.threads,
        proxy_hops=settings.proxy_hops,
        drain_seconds=settings.drain_seconds,
        stop_seconds=settings.stop_seconds,
        max_body_bytes=_max_body_bytes,
        is_upload=backend.is_upload,
        missing=backend.missing,
        background=backend.background,
    )
    register_error_handlers(app)
    visitor_cookie.register(app, settings.secret_key, settings.secret_key_fallbacks)
    cors.register(app, settings.allowed_origins)
    app.register_blueprint(health.blueprint(backend))
    if settings.host_page:
        app.register_blueprint(host_page.blueprint(settings.backend, settings.domain_key))
    identity = Identity(TokenVerifier(settings), required=settings.auth_required)
    app.register_blueprint(sessions.blueprint(identity, limits, backend))
    for blueprint in backend.blueprints:
        app.register_blueprint(blueprint)
    app.after_request(_set_security_headers)
    commands.register(app, settings)

    hops = settings.proxy_hops
    # Each proxy adds the address that it sees; scheme and host have one value, of the proxy that is in front of us.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=min(hops, 1), x_host=min(hops, 1))  # type: ignore[method-assign]
    app.wsgi_app = logs.RequestLog(app.wsgi_app)  # type: ignore[method-assign]
    return app


def _max_body_bytes(path: str) -> int:
    """Return the size limit of request bodies to ``path``, except uploads. A view may have a lower one."""
    return MAX_CHAT_BYTES if path == CHAT_PATH else sessions.MAX_BODY_BYTES


def _set_security_headers(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response
