"""Attachments of user messages: what may be uploaded, where to, and what models get.

An upload has two phases, as in ChatKit's documentation: ``attachments.create`` announces a file and returns a signed URL, and a
``PUT`` to that URL brings the content. A message then names the attachments.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from pydantic import AnyUrl

from chatkit.backends.selfhosted.chat.attachment_store import ANNOUNCED_SIZE, StoredAttachments, announced_size
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.data_urls import data_url
from chatkit.backends.selfhosted.chat.images import IMAGE_TYPES, image_type
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.signed_urls import SignedUrls
from chatkit.backends.selfhosted.sessions import SECONDS_PER_DAY
from chatkit.store import AttachmentStore, NotFoundError
from chatkit.types import Attachment, AttachmentCreateParams, AttachmentUploadDescriptor, FileAttachment, ImageAttachment
from chatkit.web.errors import AttachmentsOff, InvalidRequestBody, RequestRefused
from chatkit.web.request_body import ATTACHMENTS_PATH

MAX_MESSAGE_BYTES = 15_000_000  # what a model gets at most, see ``history.MAX_FILE_BYTES``
MAX_BYTES_PER_DAY = 200 * 1024 * 1024  # of a user
MAX_ATTACHMENTS = 100  # of a thread; some hundred megabytes, which are exported and deleted in seconds
MAX_NAME = 255  # characters
MAX_TEXT = 50_000  # characters of a text file that a model gets: half of what it gets of a conversation
UPLOAD_SECONDS = 600  # see ``SignedUrls``

_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,60}")  # a page shows none, so it must not have words for the model
_TEXT_TYPES = re.compile(r"text/.+|application/(?:json|xml|yaml|x-yaml|.+\+json|.+\+xml)")
_PDF, _PDF_SIGNATURE = "application/pdf", b"%PDF-"


class Attachments(AttachmentStore[ChatContext]):
    """OpenAI's ``AttachmentStore`` in the database.

    Args:
        stored: the attachments.
        options: ``attachments`` of ``CHATKIT_COMPOSER``; ``None`` if there are none.
        secret_key: signs the URLs of uploads.
        fallbacks: former keys, whose signatures are accepted.
    """

    def __init__(
        self, stored: StoredAttachments, options: Mapping[str, Any] | None, secret_key: str, fallbacks: Sequence[str] = ()
    ) -> None:
        self._stored = stored
        self._options = options or {}
        self._urls = upload_urls(secret_key, fallbacks)

    def require(self) -> None:
        """Raise ``AttachmentsOff`` if ``CHATKIT_COMPOSER`` has no attachments."""
        if not self._options:
            raise AttachmentsOff("CHATKIT_COMPOSER has no attachments")

    def generate_attachment_id(self, mime_type: str, context: ChatContext) -> str:
        return new_id("attachment")

    async def create_attachment(self, input: AttachmentCreateParams, context: ChatContext) -> Attachment:  # noqa: A002
        """Return an attachment with the URL of its upload. The SDK stores it.

        Raises:
            RequestRefused: the file may not be uploaded. The message is for the user.
        """
        media_type = self._media_type(input)
        if input.size <= 0:
            raise RequestRefused("an empty file", message="This file is empty")
        if input.size > self._options["maxSize"]:
            raise RequestRefused("the file is larger than maxSize", message="This file is too large")
        if await self._stored.size_since(time.time() - SECONDS_PER_DAY, context) + input.size > MAX_BYTES_PER_DAY:
            message = "You have attached too much. Please try again tomorrow"
            detail = f"more than {MAX_BYTES_PER_DAY} bytes in a day"
            raise RequestRefused(detail, status=HTTPStatus.TOO_MANY_REQUESTS, message=message)
        attachment_id = self.generate_attachment_id(media_type, context)
        url = AnyUrl(self._urls.make(context.root_url(), attachment_id, context.user))
        common: dict[str, Any] = {
            "id": attachment_id,
            "name": input.name[:MAX_NAME],
            "mime_type": media_type,
            "upload_descriptor": AttachmentUploadDescriptor(url=url, method="PUT"),
            "metadata": {ANNOUNCED_SIZE: input.size},
        }
        if media_type in IMAGE_TYPES:
            return ImageAttachment(**common, preview_url=self._stored.preview_url(attachment_id, context))
        return FileAttachment(**common)

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        """Do nothing: the content is deleted with what the ``Store`` has."""

    async def load_bytes(self, attachment_id: str, context: ChatContext) -> bytes:
        """Return the content of an attachment of the context's user.

        Raises:
            NotFoundError: there is none.
        """
        content = await self._stored.load_content(attachment_id, context)
        if content is None:
            raise NotFoundError
        return content

    async def check(
        self, attachment_ids: Sequence[str], thread_id: str | None, context: ChatContext, *, are_stored_here: bool
    ) -> None:
        """Check the attachments of a new message.

        Args:
            attachment_ids: the attachments.
            thread_id: the thread of the message; ``None`` for a new one.
            context: of the request.
            are_stored_here: whether the contents are in the database, and not in an operator's ``AttachmentStore``.

        Raises:
            AttachmentsOff: there are none.
            InvalidRequestBody: there are too many, one twice, or one that was not uploaded or was sent already.
            RequestRefused: they are too large together, or the thread has too many.
            NotFoundError: the user has no such attachment.
        """
        self.require()
        if len(attachment_ids) > self._options["maxCount"] or len(set(attachment_ids)) < len(attachment_ids):
            raise InvalidRequestBody("more attachments than maxCount, or one twice")
        if thread_id and await self._stored.count_sent(thread_id, context) + len(attachment_ids) > MAX_ATTACHMENTS:
            message = "This conversation can't keep more files. Please begin a new one"
            raise RequestRefused(f"more than {MAX_ATTACHMENTS} attachments", message=message)
        size = await self._stored.check_sendable(attachment_ids, context, need_content=are_stored_here)
        if size > MAX_MESSAGE_BYTES:
            message = "These files are too large together. Please send them in several messages"
            raise RequestRefused(f"more than {MAX_MESSAGE_BYTES} bytes in a message", message=message)

    def is_upload(self, path: str, query: str) -> bool:
        """See ``Backend.is_upload``."""
        if not path.startswith(ATTACHMENTS_PATH):
            return False
        token, *_ = parse_qs(query).get("token", [""])
        return self._urls.read(token, path.removeprefix(ATTACHMENTS_PATH)) is not None

    def receive(self, attachment_id: str, token: str, data: bytes) -> None:
        """Store an upload. May block.

        Args:
            attachment_id: of the URL.
            token: of the URL.
            data: the content.

        Raises:
            NotFoundError: the token is not valid for this attachment, or it was deleted or sent.
            InvalidRequestBody: the size is not the announced one.
            RequestRefused: the content is not of the announced type.
        """
        signed_user = self._urls.read(token, attachment_id)
        if signed_user is None:
            raise NotFoundError

        def check(attachment: Attachment) -> None:
            if len(data) != announced_size(attachment):
                raise InvalidRequestBody("the upload does not have the announced size")
            if not _has_type(data, attachment.mime_type):
                raise RequestRefused(f"an upload that is no {attachment.mime_type}", message="This file is damaged")

        self._stored.save_content(attachment_id, signed_user, data, check)

    def _media_type(self, file: AttachmentCreateParams) -> str:
        """Return the media type under which ``accept`` lists ``file``. Browsers don't know that of every file."""
        accept: Mapping[str, Sequence[str]] = self._options["accept"]
        declared = file.mime_type.partition(";")[0].strip().lower()
        by_extension = (
            listed
            for listed, extensions in accept.items()
            if file.name.lower().endswith(tuple(extensions)) and "*" not in listed
        )
        if not _MEDIA_TYPE.fullmatch(declared):
            declared = ""
        accepted = declared if any(fnmatchcase(declared, listed) for listed in accept) else next(by_extension, None)
        if accepted is None or (accepted.startswith("image/") and accepted not in IMAGE_TYPES):
            raise RequestRefused("a file whose type is not accepted", message="Files of this type can't be attached")
        return accepted


def upload_urls(secret_key: str, fallbacks: Sequence[str] = ()) -> SignedUrls:
    """Return the URLs of uploads, signed with ``secret_key``. Signatures of the keys ``fallbacks`` are accepted."""
    return SignedUrls("chatkit.upload", ATTACHMENTS_PATH, UPLOAD_SECONDS, secret_key, fallbacks)


def _has_type(data: bytes, media_type: str) -> bool:
    """Return whether ``data`` may be of ``media_type``. A model would refuse each message of a conversation with other data."""
    if media_type in IMAGE_TYPES:
        return image_type(data) is not None
    return media_type != _PDF or data.startswith(_PDF_SIGNATURE)


def model_part(attachment: Attachment, content: bytes | None) -> dict[str, Any]:
    """Return the part of a message that gives a model the ``content`` of an attachment, or tells it that there is none."""
    name, media_type = attachment.name.replace("\0", ""), attachment.mime_type
    if content is None:
        return {"type": "input_text", "text": f"(a file named {name}, {media_type}, not shown to you)"}
    if _TEXT_TYPES.fullmatch(media_type):
        text = content.decode(errors="replace").removeprefix("\ufeff").replace("\0", "")
        note = f" (the first {MAX_TEXT} characters)" if len(text) > MAX_TEXT else ""
        return {"type": "input_text", "text": f"The file {name}{note}:\n\n{text[:MAX_TEXT]}"}
    if found := image_type(content):
        return {"type": "input_image", "detail": "auto", "image_url": data_url(found, content)}
    return {"type": "input_file", "filename": name, "file_data": data_url(media_type, content)}
