"""Blueprint of the host page, which embeds ChatKit for a first try and shows each step that works."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, render_template

from chatkit.settings import PROJECT, BackendName

CDN = "https://cdn.platform.openai.com"
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src 'self' {CDN}",
        "style-src 'self' 'unsafe-inline'",  # the component adds a style, which changes with each release
        f"frame-src {CDN}",
        "connect-src 'self' https://api.openai.com",  # for the domain check of the component
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def blueprint(backend: BackendName, domain_key: str) -> Blueprint:
    """Serve ``GET /`` and its files. A self-hosted chat needs the ``domain_key`` that OpenAI issued for this host."""
    bp = Blueprint("host_page", __name__, template_folder=PROJECT / "templates", static_folder=PROJECT / "static")

    @bp.get("/")
    def show() -> Response:
        """Render the page. It contains no secret: its script requests a session as any frontend does."""
        page = render_template(
            "host.html", backend=backend, domain_key=domain_key if backend is BackendName.SELFHOSTED else None
        )
        response = make_response(page)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Referrer-Policy"] = "strict-origin-when-cross-origin"
        return response

    return bp
