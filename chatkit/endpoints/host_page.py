"""Blueprint: the page for a quick try, which embeds ChatKit and says step by step what works."""

from __future__ import annotations

from flask import Blueprint, Response, make_response, render_template

from chatkit.settings import PROJECT, BackendName

CDN = "https://cdn.platform.openai.com"
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src 'self' {CDN}",
        "style-src 'self' 'unsafe-inline'",  # the component puts a style into the page, another one with each release
        f"frame-src {CDN}",
        "connect-src 'self' https://api.openai.com",  # where the component asks whether this domain may use it
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def blueprint(backend: BackendName, domain_key: str) -> Blueprint:
    """``GET /`` and its files; ``domain_key`` is the one that OpenAI gave for this host, used by a self-hosted chat."""
    bp = Blueprint("host_page", __name__, template_folder=PROJECT / "templates", static_folder=PROJECT / "static")

    @bp.get("/")
    def show() -> Response:
        """The page. It holds no secret: its script asks for a session as any frontend does."""
        page = render_template(
            "host.html", backend=backend, domain_key=domain_key if backend is BackendName.SELFHOSTED else None
        )
        response = make_response(page)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Referrer-Policy"] = "strict-origin-when-cross-origin"
        return response

    return bp
