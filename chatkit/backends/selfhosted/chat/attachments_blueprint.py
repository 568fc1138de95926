"""Blueprint of the uploads of attachments."""

from __future__ import annotations

from flask import Blueprint, Response, request

from chatkit.backends.selfhosted.chat.attachments import Attachments
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, unavailable
from chatkit.limits.rate import Limits
from chatkit.store import NotFoundError
from chatkit.web.errors import NotFound
from chatkit.web.request_body import ATTACHMENTS_PATH, read_file


def blueprint(attachments: Attachments, limits: Limits) -> Blueprint:
    """Create the blueprint of ``PUT /api/chatkit/attachments/{attachment_id}``."""
    bp = Blueprint("attachments", __name__)

    @bp.put(f"{ATTACHMENTS_PATH}<attachment_id>")
    def receive(attachment_id: str) -> Response:
        """Store the content of an attachment. Its URL is signed, because ChatKit's frame sends no session."""
        limits.count("requests")
        try:
            attachments.receive(attachment_id, request.args.get("token", ""), read_file())
        except NotFoundError as error:
            raise NotFound("no such attachment, or its URL has expired, or it was sent") from error
        except UNAVAILABLE as error:
            raise unavailable("an attachment could not be stored", error) from error
        return Response(status=204)

    return bp
