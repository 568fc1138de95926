"""The client's address, scheme and host as trusted proxies report them."""

from __future__ import annotations

from werkzeug.middleware.proxy_fix import ProxyFix as _ProxyFix


class ProxyFix(_ProxyFix):
    """Werkzeug's middleware, for headers to which a client has added a quote.

    Werkzeug parses quoted strings, so an unbalanced quote in the client's part of ``X-Forwarded-For`` would hide what the
    proxies add. No proxy quotes addresses, schemes or hosts there.
    """

    def _get_real_value(self, trusted: int, value: str | None) -> str | None:
        values = [part.strip() for part in (value or "").split(",")]
        return values[-trusted] if 0 < trusted <= len(values) else None
