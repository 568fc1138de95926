"""Attachments in SQL: what is known about each, and its content.

Every statement but ``_LOCK_UNSENT`` and ``_DELETE_CONTENT``, whose caller has a signed URL, names the user of the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import AnyUrl, TypeAdapter
from sqlalchemy import Connection, and_, bindparam, delete, exists, func, insert, select, update

from chatkit.backends.selfhosted.chat import images
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.rows import (
    ATTACHMENTS,
    CONTENTS,
    ITEMS,
    LATER_ITEMS,
    USER,
    one_or_not_found,
    parsed,
    require_match,
)
from chatkit.backends.selfhosted.chat.signed_urls import SignedUrls, user_hash
from chatkit.backends.selfhosted.chat.surrogates import to_json
from chatkit.backends.selfhosted.chat.transactions import Transactions
from chatkit.backends.selfhosted.sessions import DETACHED, require_session
from chatkit.store import NotFoundError
from chatkit.types import Attachment, ImageAttachment
from chatkit.web.errors import InvalidRequestBody

ANNOUNCED_SIZE = "chatkit.size"  # in the metadata of an attachment

_attachment: TypeAdapter[Any] = TypeAdapter(Attachment)

_own = and_(ATTACHMENTS.c.id == bindparam("attachment"), ATTACHMENTS.c.user_id == USER)
_unsent = ATTACHMENTS.c.item_id.is_(None)
_of_thread = and_(ATTACHMENTS.c.thread_id == bindparam("thread"), ATTACHMENTS.c.user_id == USER)
_SELECT = select(ATTACHMENTS.c.data).where(_own)
_INSERT = insert(ATTACHMENTS)
_UPDATE = (
    update(ATTACHMENTS)
    .where(_own, _unsent | (ATTACHMENTS.c.thread_id == bindparam("new_thread")))
    .values(data=bindparam("new_data"), thread_id=bindparam("new_thread"))
)
_DELETE = delete(ATTACHMENTS).where(_own)
_SUM_SIZES = select(func.coalesce(func.sum(ATTACHMENTS.c.size), 0)).where(
    ATTACHMENTS.c.user_id == USER, ATTACHMENTS.c.created_at > bindparam("since")
)
_COUNT_SENT = select(func.count()).select_from(ATTACHMENTS).where(_of_thread)
_has_content = exists().where(CONTENTS.c.attachment_id == ATTACHMENTS.c.id)
_SELECT_SENDABLE = select(ATTACHMENTS.c.size, _unsent.label("is_unsent"), _has_content.label("has_content")).where(
    ATTACHMENTS.c.id.in_(bindparam("attachments", expanding=True)),
    ATTACHMENTS.c.user_id == USER,
    ATTACHMENTS.c.created_at > 0,  # not detached
)
# One that was detached can't be read any more.
_SELECT_CONTENT = select(CONTENTS.c.data).join(ATTACHMENTS, ATTACHMENTS.c.id == CONTENTS.c.attachment_id).where(_own, ~_unsent)
# Finds out whose attachment it is, to compare with the signed URL, and locks it. On SQLite a write begins the transaction.
_LOCK_UNSENT = (
    update(ATTACHMENTS)
    .where(ATTACHMENTS.c.id == bindparam("attachment"), _unsent)
    .values(size=ATTACHMENTS.c.size)
    .returning(ATTACHMENTS.c.user_id, ATTACHMENTS.c.data)
)
_DELETE_CONTENT = delete(CONTENTS).where(CONTENTS.c.attachment_id == bindparam("attachment"))
_INSERT_CONTENT = insert(CONTENTS)
SEND_ATTACHMENTS = (
    update(ATTACHMENTS)
    .where(
        ATTACHMENTS.c.id.in_(bindparam("attachments", expanding=True)),
        ATTACHMENTS.c.user_id == USER,
        _unsent | and_(ATTACHMENTS.c.thread_id == bindparam("new_thread"), ATTACHMENTS.c.item_id == bindparam("new_item")),
    )
    .values(thread_id=bindparam("new_thread"), item_id=bindparam("new_item"))
)
"""Makes attachments part of a message, unless another message has them."""
_detached = update(ATTACHMENTS).values(DETACHED)
DETACH_ATTACHMENTS = _detached.where(_of_thread)
DETACH_ATTACHMENTS_OF_ITEM = _detached.where(_of_thread, ATTACHMENTS.c.item_id == bindparam("item"))
DETACH_LATER_ATTACHMENTS = _detached.where(_of_thread, ATTACHMENTS.c.item_id.in_(select(ITEMS.c.id).where(LATER_ITEMS)))


class StoredAttachments:
    """The attachments of all users; each user can access only their own. Their contents are deleted with them.

    Args:
        transactions: the database.
        image_urls: makes the preview URLs of images.
    """

    def __init__(self, transactions: Transactions, image_urls: SignedUrls) -> None:
        self._transactions = transactions
        self._image_urls = image_urls

    async def save(self, attachment: Attachment, context: ChatContext) -> None:
        """Store what is known about an attachment.

        Raises:
            ThreadGone: the user has no such thread, or the context's run was replaced.
            NotFoundError: the attachment of a new message was deleted, or is that of another message.
            ClientSecretUnknown: the session was deleted.
        """
        thread_id = attachment.thread_id
        row = {
            "id": attachment.id,
            "user_id": context.user,
            "thread_id": thread_id,
            "data": to_json(self.stored_form(attachment)),
        }
        changes = {"user": context.user, "attachment": row["id"], "new_data": row["data"], "new_thread": thread_id}

        def work(connection: Connection) -> None:
            if connection.execute(_UPDATE, changes).rowcount:
                return
            if thread_id and context.brings_message:
                raise NotFoundError
            connection.execute(_INSERT, {**row, "created_at": int(time.time()), "size": announced_size(attachment)})
            require_session(connection, context.session_id)

        await (self._transactions.write(thread_id, context, work) if thread_id else self._transactions.run(work))

    async def load(self, attachment_id: str, context: ChatContext) -> Attachment:
        params = {"user": context.user, "attachment": attachment_id}
        data = await self._transactions.run(lambda connection: one_or_not_found(connection.execute(_SELECT, params)))
        return self.shown_form(_read(data), context)

    async def delete(self, attachment_id: str, context: ChatContext) -> None:
        params = {"user": context.user, "attachment": attachment_id}
        await self._transactions.run(lambda connection: require_match(connection.execute(_DELETE, params)))

    async def size_since(self, since: float, context: ChatContext) -> int:
        """Return the bytes of the attachments that the user has announced after ``since`` (Unix seconds)."""
        params = {"user": context.user, "since": int(since)}
        return int(await self._transactions.run(lambda connection: connection.execute(_SUM_SIZES, params).scalar_one()))

    async def count_sent(self, thread_id: str, context: ChatContext) -> int:
        """Return the number of attachments in a thread."""
        params = {"user": context.user, "thread": thread_id}
        return await self._transactions.run(lambda connection: connection.execute(_COUNT_SENT, params).scalar_one())

    async def check_sendable(self, attachment_ids: Sequence[str], context: ChatContext, *, need_content: bool) -> int:
        """Check that attachments, all different, were not sent, and with ``need_content`` that they were uploaded.

        Returns:
            Their size in bytes.

        Raises:
            NotFoundError: the user has no such attachment.
            InvalidRequestBody: one was not uploaded, or was sent already.
        """
        params = {"user": context.user, "attachments": list(attachment_ids)}
        rows = await self._transactions.run(lambda connection: connection.execute(_SELECT_SENDABLE, params).all())
        if len(rows) < len(attachment_ids):
            raise NotFoundError
        if not all(row.is_unsent and (row.has_content or not need_content) for row in rows):
            raise InvalidRequestBody("an attachment was not uploaded, or was sent already")
        return sum(row.size for row in rows)

    async def load_content(self, attachment_id: str, context: ChatContext) -> bytes | None:
        """Return the content of an attachment that was sent; ``None`` if the user has none."""
        params = {"user": context.user, "attachment": attachment_id}
        return await self._transactions.run(lambda connection: connection.execute(_SELECT_CONTENT, params).scalar_one_or_none())

    def save_content(self, attachment_id: str, signed_user: str, data: bytes, check: Callable[[Attachment], None]) -> None:
        """Store the content of an unsent attachment, or replace it. May block.

        Args:
            attachment_id: the attachment.
            signed_user: the ``user_hash`` of its user.
            data: the content.
            check: called with the attachment; may raise.

        Raises:
            NotFoundError: the user has no such attachment, or it was sent.
        """
        params = {"attachment": attachment_id}
        with self._transactions.engine.begin() as connection:
            row = connection.execute(_LOCK_UNSENT, params).one_or_none()
            if row is None or user_hash(row.user_id) != signed_user:
                raise NotFoundError
            check(_read(row.data))
            connection.execute(_DELETE_CONTENT, params)
            connection.execute(_INSERT_CONTENT, {"attachment_id": attachment_id, "data": data})

    def stored_form(self, attachment: Attachment) -> Attachment:
        """Return ``attachment`` with a reference in place of a preview URL of this service, and without an upload URL."""
        changes: dict[str, Any] = {"upload_descriptor": None}
        if isinstance(attachment, ImageAttachment) and (image_id := self._image_urls.find(str(attachment.preview_url))):
            changes["preview_url"] = AnyUrl(images.reference(image_id))
        return attachment.model_copy(update=changes)

    def shown_form(self, attachment: Attachment, context: ChatContext) -> Attachment:
        """Return ``attachment`` with a preview URL in place of a reference."""
        if not isinstance(attachment, ImageAttachment) or not (id_ := images.referenced(str(attachment.preview_url))):
            return attachment
        return attachment.model_copy(update={"preview_url": self.preview_url(id_, context)})

    def preview_url(self, attachment_id: str, context: ChatContext) -> AnyUrl:
        return AnyUrl(self._image_urls.make(context.root_url(), attachment_id, context.user))


def announced_size(attachment: Attachment) -> int:
    """Return the size of the content in bytes; 0 if an operator's ``AttachmentStore`` keeps it."""
    return int((attachment.metadata or {}).get(ANNOUNCED_SIZE, 0))


def _read(data: str) -> Attachment:
    attachment: Attachment = parsed(_attachment.validate_json, data)
    return attachment
