"""Blueprint of the generated images that items refer to."""

from __future__ import annotations

from contextlib import ExitStack

from flask import Blueprint, Response, request

from chatkit.backends.selfhosted.chat.images import MAX_IMAGE_BYTES, URL_SECONDS
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, unavailable
from chatkit.limits.concurrency import ADDRESS_DIVISOR, ConcurrencyLimit
from chatkit.limits.rate import Limits, address
from chatkit.store import NotFoundError
from chatkit.web.errors import NotFound
from chatkit.web.request_body import IMAGES_PATH

MAX_SENDING_BYTES = 16 * MAX_IMAGE_BYTES  # in memory until their clients have read them

HEADERS = {
    "Cache-Control": f"private, max-age={URL_SECONDS}, immutable",
    # ChatKit's frame has OpenAI's origin. The signed URL is the only authorization.
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    # For a browser that opens the URL as a page.
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def blueprint(store: SqlStore, limits: Limits) -> Blueprint:
    """Create the blueprint of ``GET /api/chatkit/images/{image_id}``."""
    bp = Blueprint("images", __name__)
    sending = ConcurrencyLimit("bytes of images", MAX_SENDING_BYTES, MAX_SENDING_BYTES // ADDRESS_DIVISOR)

    @bp.get(f"{IMAGES_PATH}<image_id>")
    def show(image_id: str) -> Response:
        """Return an image. Its URL is signed, because an ``<img>`` sends no session."""
        limits.count("requests")
        holder = address()
        with ExitStack() as held:

            def admit(size: int) -> None:
                sending.acquire(holder, size)
                held.callback(sending.release, holder, size)

            try:
                image = store.open_image(image_id, request.args.get("token", ""), admit)
            except NotFoundError as error:
                raise NotFound("no such image, or its URL has expired") from error
            except UNAVAILABLE as error:
                raise unavailable("an image could not be read", error) from error
            response = Response(image.data, mimetype=image.media_type, headers=HEADERS)
            response.call_on_close(held.pop_all().close)
            return response

    return bp
