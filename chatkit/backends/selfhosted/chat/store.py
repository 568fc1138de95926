"""ChatKit's ``Store`` in SQL: threads, their items, and generated images.

Every statement but ``_SELECT_IMAGE_OWNER`` names the user of the request, so another user's thread is not found. Pages are
ordered by a number that only grows within a thread, so they stay correct while items are added and when two items have the same
timestamp.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Text, and_, bindparam, delete, func, insert, null, or_, select, update

from chatkit.backends.selfhosted.chat import images
from chatkit.backends.selfhosted.chat.active_run_store import (
    INSERT_RUN,
    MAKE_REPEATABLE,
    SAVE_DRAFT,
    ActiveRunStore,
    draft_rows,
    ending,
    run_row,
)
from chatkit.backends.selfhosted.chat.attachment_store import (
    DETACH_ATTACHMENTS,
    DETACH_ATTACHMENTS_OF_ITEM,
    DETACH_LATER_ATTACHMENTS,
    SEND_ATTACHMENTS,
    StoredAttachments,
)
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.images import MAX_IMAGES, Image, ImageRefusedError, image_type
from chatkit.backends.selfhosted.chat.pages import PageQuery
from chatkit.backends.selfhosted.chat.paused_run_store import DELETE_PAUSED_RUN, PausedRunStore
from chatkit.backends.selfhosted.chat.rows import (
    ATTACHMENTS,
    CONTENTS,
    IMAGES,
    INSERT_ITEM,
    ITEMS,
    LATER_ITEMS,
    OWN_ITEM,
    OWN_ITEMS,
    OWN_THREAD,
    SAVE_ITEM,
    SELECT_ITEM,
    THREADS,
    USER,
    item_row,
    new_id,
    one_or_not_found,
    parsed,
    read_item,
    require_match,
    storable,
)
from chatkit.backends.selfhosted.chat.signed_urls import SignedUrls, user_hash
from chatkit.backends.selfhosted.chat.surrogates import to_json
from chatkit.backends.selfhosted.chat.timestamps import in_local_time, in_utc
from chatkit.backends.selfhosted.chat.transactions import (
    TOUCH_THREAD,
    ThreadGone,
    Transactions,
    gone_threads_logged,
    writer_params,
)
from chatkit.backends.selfhosted.database.tables import SessionRow
from chatkit.backends.selfhosted.sessions import LOCK_SESSION, require_session
from chatkit.store import NotFoundError, Store
from chatkit.types import (
    AssistantMessageItem,
    Attachment,
    ClientToolCallItem,
    GeneratedImage,
    GeneratedImageItem,
    Page,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    WorkflowItem,
)
from chatkit.web import errors

DRAFT_SECONDS = 1.0  # the end of a message waits for a draft of it that is being saved

_MISSING: Any = object()
_THREAD_FIELDS = list(ThreadMetadata.model_fields)

# Statements are built once: building one takes longer than running it. Each names the user.

_SELECT_THREAD = select(THREADS.c.data).where(OWN_THREAD)
_session_lives = LOCK_SESSION.where(SessionRow.expires_at > bindparam("after")).exists()
_new_thread = {name: bindparam(name, type_=THREADS.c[name].type) for name in ("id", "user_id", "data", "used_at")}


def _insert_thread(**more: Any) -> Any:
    """Insert nothing if there is a session, unless it expires later than ``after``. Locks the session.

    That is one statement without a result, because reading a result while holding SQLite's write lock delays others.
    """
    columns = {**_new_thread, **more}
    allowed = select(*columns.values()).where(or_(bindparam("session", type_=Text) == "", _session_lives))
    return insert(THREADS).from_select([*columns], allowed).execution_options(preserve_rowcount=True)


INSERT_THREAD = {
    # Imported threads have negative positions, and SQLite's own choice is one more than the highest.
    "sqlite": _insert_thread(
        position=select(func.max(func.coalesce(func.max(THREADS.c.position), 0), 0) + 1).scalar_subquery()
    ),
    "postgresql": _insert_thread(),
}
_UPDATE_THREAD = update(THREADS).where(OWN_THREAD).values(data=bindparam("new_data"))
_TOUCH_AND_SELECT_THREAD = TOUCH_THREAD.returning(THREADS.c.data)
_DELETE_THREAD = delete(THREADS).where(OWN_THREAD)
_UPDATE_FEEDBACK = (
    update(ITEMS).where(OWN_ITEMS, ITEMS.c.id.in_(bindparam("items", expanding=True))).values(feedback=bindparam("kind"))
)
_DELETE_ITEM = delete(ITEMS).where(OWN_ITEM)
_SELECT_LAST_ITEMS = select(ITEMS.c.id, ITEMS.c.data).where(OWN_ITEMS).order_by(ITEMS.c.position.desc()).limit(2)
_DELETE_LATER_ITEMS = delete(ITEMS).where(LATER_ITEMS)
_own_images = and_(IMAGES.c.thread_id == bindparam("thread"), IMAGES.c.user_id == USER)
_COUNT_IMAGES = select(func.count()).select_from(IMAGES).where(_own_images)
_INSERT_IMAGE = insert(IMAGES)
_DELETE_IMAGE = delete(IMAGES).where(_own_images, IMAGES.c.item_id == bindparam("item"))
_DELETE_LATER_IMAGES = delete(IMAGES).where(_own_images, IMAGES.c.item_id.in_(select(ITEMS.c.id).where(LATER_ITEMS)))
# Generated images, and attachments that were uploaded.
_SELECT_IMAGE = (
    select(IMAGES.c.media_type, IMAGES.c.data)
    .where(IMAGES.c.id == bindparam("image"), IMAGES.c.user_id == USER)
    .union_all(
        select(null(), CONTENTS.c.data)
        .join(ATTACHMENTS, ATTACHMENTS.c.id == CONTENTS.c.attachment_id)
        .where(ATTACHMENTS.c.id == bindparam("image"), ATTACHMENTS.c.user_id == USER)
    )
)
# Finds out whose image it is, to compare with the signed URL.
_SELECT_IMAGE_OWNER = (
    select(IMAGES.c.user_id, func.length(IMAGES.c.data).label("size"))
    .where(IMAGES.c.id == bindparam("image"))
    .union_all(
        select(ATTACHMENTS.c.user_id, func.length(CONTENTS.c.data))
        .join(CONTENTS, ATTACHMENTS.c.id == CONTENTS.c.attachment_id)
        .where(ATTACHMENTS.c.id == bindparam("image"))
    )
)
_THREAD_PAGES = PageQuery.for_table(
    THREADS, THREADS.c.user_id == USER, and_(THREADS.c.id == bindparam("after"), THREADS.c.user_id == USER)
)
_ITEM_PAGES = PageQuery.for_table(ITEMS, OWN_ITEMS, and_(OWN_ITEMS, ITEMS.c.id == bindparam("after")))


class SqlStore(Store[ChatContext]):
    """Stores the threads and items of all users; each user can access only their own.

    Args:
        engine: the database.
        image_urls: makes the URLs of images in the items that are loaded.
    """

    def __init__(self, engine: Engine, image_urls: SignedUrls) -> None:
        self.transactions = Transactions(engine)
        self.attachments = StoredAttachments(self.transactions, image_urls)
        self.active_runs = ActiveRunStore(self.transactions)
        self.paused_runs = PausedRunStore(self.transactions)
        self._image_urls = image_urls

    async def _change(
        self, thread_id: str, context: ChatContext, change: Callable[[ThreadMetadata], ThreadMetadata]
    ) -> ThreadMetadata:
        """Store the changed thread in a transaction that locks the thread, and return it.

        Raises:
            ThreadGone: the user has no such thread, or the context's run was replaced.
        """
        params = {**writer_params(context), "thread": thread_id, "now": int(time.time())}

        def work(connection: Connection) -> ThreadMetadata:
            data = connection.execute(_TOUCH_AND_SELECT_THREAD, params).scalar_one_or_none()
            if data is None:
                raise ThreadGone
            stored = _read_thread(data)
            changed = change(stored)
            if changed is not stored:
                connection.execute(_UPDATE_THREAD, {**params, "new_data": _thread_data(changed)})
            return changed

        with gone_threads_logged():
            return await self.transactions.run(work)

    # Identifiers: 122 random bits; the SDK's own have 32

    def generate_thread_id(self, context: ChatContext) -> str:
        thread_id = new_id("thread")
        context.threads[thread_id] = []
        return thread_id

    def generate_item_id(self, item_type: Any, thread: ThreadMetadata, context: ChatContext) -> str:
        return new_id(item_type)

    # Threads

    async def load_thread(self, thread_id: str, context: ChatContext) -> ThreadMetadata:
        params = {"user": context.user, "thread": thread_id}
        thread = _read_thread(
            await self.transactions.run(lambda connection: one_or_not_found(connection.execute(_SELECT_THREAD, params)))
        )
        context.threads.setdefault(thread_id, []).append((thread, thread.model_copy(deep=True)))
        return thread

    async def save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
        """Store this request's changes to a thread, and merge other requests' changes into ``thread``.

        For example, a user can rename a thread while a response to it is streamed. Changes that a tool makes to ``thread``
        during the save are kept, and stored by the next one.

        A new thread and its run are stored in one transaction.

        Raises:
            ThreadGone: the user has no such thread, or the context's run was replaced.
            ClientSecretExpired: a new thread's session has ended.
            ClientSecretUnknown: a new thread's session was deleted.
        """
        async with context.saving_thread:
            await self._save_thread(thread, context)

    async def _save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
        mine = thread.model_copy(deep=True)
        objects = context.threads.get(thread.id)
        begins_run = bool(context.run_id) and len(context.threads) == 1

        def add(connection: Connection) -> ThreadMetadata:
            new = {"id": thread.id, "user_id": context.user, "data": _thread_data(mine), "used_at": int(time.time())}
            after = int(time.time()) if begins_run else -1  # what began in time may also be stored later
            conditions = {"session": context.session_id, "after": after}
            if not connection.execute(INSERT_THREAD[connection.dialect.name], {**new, **conditions}).rowcount:
                require_session(connection, context.session_id)
                raise errors.ClientSecretExpired("the session ended before the conversation began")
            if begins_run:
                connection.execute(INSERT_RUN, run_row(thread.id, context))
            return mine

        def change(stored: ThreadMetadata) -> ThreadMetadata:
            return stored.model_copy(update=_merge(mine, known, stored)) if known else mine

        if objects == []:
            with gone_threads_logged():
                written = await self.transactions.run(add, undo=ending(context) if begins_run else None)
        else:
            # An object without an entry is a copy; its base is the state that this request loaded first.
            known = next((known for loaded, known in objects if loaded is thread), objects[0][1]) if objects else None
            written = await self._change(thread.id, context, change)
        for name, value in _merge(thread, mine, written).items():
            if value is not getattr(thread, name):
                setattr(thread, name, value)
        others = [pair for pair in objects or () if pair[0] is not thread]
        context.threads[thread.id] = [*others, (thread, written.model_copy(deep=True))]

    async def replace_title(self, thread: ThreadMetadata, old: str | None, new: str, context: ChatContext) -> None:
        """Replace the title ``old``, which may not be stored yet. A title that another request has stored stays.

        ``thread`` and other objects of this request get the stored title, so that its later saves do not change it.
        """

        def replace(stored: ThreadMetadata) -> ThreadMetadata:
            return stored.model_copy(update={"title": new}) if stored.title in (None, old) else stored

        async with context.saving_thread:
            title = (await self._change(thread.id, context, replace)).title
            known_objects = context.threads.get(thread.id, [])
            for mine in (thread, *(loaded for loaded, _known in known_objects)):
                if mine.title in (None, old):
                    mine.title = title
            for _loaded, known in known_objects:
                known.title = title

    async def load_threads(self, limit: int, after: str | None, order: str, context: ChatContext) -> Page[ThreadMetadata]:
        params = {"user": context.user}
        return await self.transactions.run(
            lambda connection: _THREAD_PAGES.load(connection, _read_thread, limit, after, order, params)
        )

    async def delete_thread(self, thread_id: str, context: ChatContext) -> None:
        params = {"user": context.user, "thread": thread_id}

        def work(connection: Connection) -> None:
            connection.execute(DETACH_ATTACHMENTS, params)
            require_match(connection.execute(_DELETE_THREAD, params))  # foreign keys cascade to its items and images

        # Locks the thread before its attachments, as whatever sends them does.
        await self.transactions.write(thread_id, context, work)

    # Items

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: ChatContext
    ) -> Page[ThreadItem]:
        params = {"user": context.user, "thread": thread_id}

        def check_thread(connection: Connection) -> None:
            if connection.execute(_SELECT_THREAD, params).scalar_one_or_none() is None:
                raise ThreadGone

        def work(connection: Connection) -> Page[ThreadItem]:
            try:
                page = _ITEM_PAGES.load(connection, read_item, limit, after, order, params)
            except NotFoundError:
                check_thread(connection)
                raise
            if not page.data:
                check_thread(connection)
            return page

        with gone_threads_logged():
            page = await self.transactions.run(work)
        for item in page.data:
            self._set_image_urls(item, context)
        return page

    async def load_item(self, thread_id: str, item_id: str, context: ChatContext) -> ThreadItem:
        params = {"user": context.user, "thread": thread_id, "item": item_id}
        item = read_item(
            await self.transactions.run(lambda connection: one_or_not_found(connection.execute(SELECT_ITEM, params)))
        )
        self._set_image_urls(item, context)
        return item

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        await self.save_item(thread_id, item, context)

    async def save_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        """Add an item, or replace the one with its id in its place: the SDK adds a workflow again when it continues it.

        Do nothing if the context's ``stored`` has the item as it is: another request may have changed it since.

        The image of a generated_image item is stored apart from it. ``item`` gets a URL in place of the data.

        Raises:
            ImageRefusedError: the image is too large or of an unknown type, or the thread has ``MAX_IMAGES``.
        """
        if context.stored.pop(item.id, None) == item:
            return
        if isinstance(item, GeneratedImageItem) and item.image:
            await self._save_image_item(thread_id, item, item.image, context)
            return
        attachments = item.attachments if isinstance(item, UserMessageItem) else []
        stored = item
        if attachments:
            stored = item.model_copy(update={"attachments": [*map(self.attachments.stored_form, attachments)]})
        new = item_row(stored, thread_id, context)
        sent = {"user": context.user, "attachments": [attachment.id for attachment in attachments]}

        def work(connection: Connection) -> None:
            connection.execute(SAVE_ITEM[connection.dialect.name], new)
            if attachments:
                found = connection.execute(SEND_ATTACHMENTS, {**sent, "new_thread": thread_id, "new_item": item.id}).rowcount
                if context.brings_message and found < len(attachments):
                    raise NotFoundError  # one was deleted or sent meanwhile
            if context.brings_message and isinstance(item, UserMessageItem):
                connection.execute(MAKE_REPEATABLE, {"run": context.run_id, "user": context.user})

        await self.transactions.write(thread_id, context, work)
        context.drafts.pop(item.id, None)
        if isinstance(item, UserMessageItem):
            context.message_is_stored.set()

    async def _save_image_item(
        self, thread_id: str, item: GeneratedImageItem, image: GeneratedImage, context: ChatContext
    ) -> None:
        params = {"user": context.user, "thread": thread_id, "item": item.id}
        stored_item, url = in_utc(item), image.url

        def work(connection: Connection) -> str | None:
            image_id = self._image_urls.find(url)
            if not image_id:
                connection.execute(_DELETE_IMAGE, params)
            if url.startswith("data:"):
                decoded = Image.from_data_url(url)
                if connection.execute(_COUNT_IMAGES, params).scalar_one() >= MAX_IMAGES:
                    raise ImageRefusedError("This conversation can't keep more images. Please begin a new one.")
                image_id = new_id("image")
                row = {"thread_id": thread_id, "user_id": context.user, "item_id": item.id, "id": image_id}
                connection.execute(_INSERT_IMAGE, {**row, "media_type": decoded.media_type, "data": decoded.data})
            stored_url = images.reference(image_id) if image_id else url
            stored = stored_item.model_copy(update={"image": image.model_copy(update={"url": stored_url})})
            connection.execute(SAVE_ITEM[connection.dialect.name], item_row(stored, thread_id, context))
            return image_id

        if image_id := await self.transactions.write(thread_id, context, work):
            image.url = self._image_urls.make(context.root_url(), image_id, context.user)

    def _set_image_urls(self, item: ThreadItem, context: ChatContext) -> None:
        if isinstance(item, UserMessageItem):
            item.attachments = [self.attachments.shown_form(attachment, context) for attachment in item.attachments]
        elif isinstance(item, GeneratedImageItem) and item.image and (image_id := images.referenced(item.image.url)):
            item.image.url = self._image_urls.make(context.root_url(), image_id, context.user)

    async def add_before_call(self, thread_id: str, item: ThreadItem, context: ChatContext) -> str | None:
        """Add an item at the end of a thread, or before the client tool call that is pending there.

        The SDK accepts a client tool's output only while the call is the thread's last item, and continues a workflow only if
        it directly precedes the call.

        Returns:
            The id of the pending call, if there is one.
        """
        params = {"user": context.user, "thread": thread_id}
        owner = {"thread_id": thread_id, "user_id": context.user}

        def work(connection: Connection) -> str | None:
            rows = connection.execute(_SELECT_LAST_ITEMS, params).all()
            last = [read_item(row.data) for row in rows]
            pending = bool(last) and _is_pending(last[0])
            moved = rows[: 1 + isinstance(last[-1], WorkflowItem)] if pending else []
            for row in moved:
                connection.execute(_DELETE_ITEM, {**params, "item": row.id})
            connection.execute(INSERT_ITEM, item_row(item, thread_id, context))
            for row in reversed(moved):
                connection.execute(INSERT_ITEM, {**owner, "id": row.id, "data": row.data})
            return last[0].id if pending else None

        return await self.transactions.write(thread_id, context, work)

    async def move_to_end(self, thread_id: str, call_id: str, context: ChatContext) -> None:
        """Make a client tool call the thread's last item, if it is still pending."""
        params = {"user": context.user, "thread": thread_id, "item": call_id}

        def work(connection: Connection) -> None:
            data = connection.execute(SELECT_ITEM, params).scalar_one_or_none()
            if data is not None and _is_pending(read_item(data)):
                connection.execute(_DELETE_ITEM, params)
                row = {"thread_id": thread_id, "user_id": context.user, "id": call_id, "data": data}
                connection.execute(INSERT_ITEM, row)

        await self.transactions.write(thread_id, context, work)

    async def delete_after(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        """Delete all items after a user message, and the paused run, whose widgets are among them.

        Raises:
            NotFoundError: there is no such item.
            ValueError: the item is not a user message.
        """
        params = {"user": context.user, "thread": thread_id, "item": item_id}

        def work(connection: Connection) -> None:
            if not isinstance(read_item(one_or_not_found(connection.execute(SELECT_ITEM, params))), UserMessageItem):
                raise ValueError("not a user message")
            connection.execute(DELETE_PAUSED_RUN, params)
            connection.execute(_DELETE_LATER_IMAGES, params)
            connection.execute(DETACH_LATER_ATTACHMENTS, params)
            connection.execute(_DELETE_LATER_ITEMS, params)

        await self.transactions.write(thread_id, context, work)

    async def save_drafts(self, drafts: Iterable[tuple[ChatContext, AssistantMessageItem]]) -> None:
        """Store unfinished messages, each paired with the context of its response, within ``DRAFT_SECONDS``."""
        if rows := draft_rows(drafts):
            await self.transactions.run(
                lambda connection: connection.execute(SAVE_DRAFT[connection.dialect.name], rows), DRAFT_SECONDS
            )

    async def delete_thread_item(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        """Delete an item if it exists: the SDK also removes items that it has shown but never stored."""
        params = {"user": context.user, "thread": thread_id, "item": item_id}

        def work(connection: Connection) -> None:
            connection.execute(_DELETE_IMAGE, params)
            connection.execute(DETACH_ATTACHMENTS_OF_ITEM, params)
            connection.execute(_DELETE_ITEM, params)

        await self.transactions.run(work)

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: Literal["positive", "negative"], context: ChatContext
    ) -> None:
        """Store feedback on the items that exist; at least one must, unless none is named."""
        if not item_ids:
            return
        params = {"user": context.user, "thread": thread_id, "items": item_ids, "kind": kind}
        await self.transactions.run(lambda connection: require_match(connection.execute(_UPDATE_FEEDBACK, params)))

    # Generated images

    async def load_image(self, url: str, context: ChatContext) -> str:
        """Return an image as a data URL, given its URL; an empty string if there is no such image.

        A URL from elsewhere is returned as it is.
        """
        image_id = self._image_urls.find(url)
        if not image_id:
            return url

        def work(connection: Connection) -> str:
            image = _read_image(connection, image_id, context.user)
            return image.to_data_url() if image else ""

        return await self.transactions.run(work)

    def open_image(self, image_id: str, token: str, admit: Callable[[int], None]) -> Image:
        """Return the image of a signed URL. May block.

        Args:
            image_id: of the URL.
            token: of the URL.
            admit: called with the number of bytes before they are read; may raise.

        Raises:
            NotFoundError: the token is not valid for this image, or its user no longer has such an image.
        """
        signed_user = self._image_urls.read(token, image_id)
        if signed_user is None:
            raise NotFoundError
        with self.transactions.engine.connect() as connection:
            owner = connection.execute(_SELECT_IMAGE_OWNER, {"image": image_id}).one_or_none()
            if owner is None or user_hash(owner.user_id) != signed_user:
                raise NotFoundError
            admit(owner.size)
            image = _read_image(connection, image_id, owner.user_id)
        if image is None:
            raise NotFoundError
        return image

    # Attachments

    async def save_attachment(self, attachment: Attachment, context: ChatContext) -> None:
        await self.attachments.save(attachment, context)

    async def load_attachment(self, attachment_id: str, context: ChatContext) -> Attachment:
        return await self.attachments.load(attachment_id, context)

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        await self.attachments.delete(attachment_id, context)


def _read_image(connection: Connection, image_id: str, user: str) -> Image | None:
    row = connection.execute(_SELECT_IMAGE, {"image": image_id, "user": user}).one_or_none()
    if row is None:
        return None
    media_type = row.media_type or image_type(row.data)
    return Image(media_type, row.data) if media_type else None


def _merge(mine: ThreadMetadata, base: ThreadMetadata, theirs: ThreadMetadata) -> dict[str, Any]:
    """Three-way merge of a thread's fields: mine where I changed them since ``base``, else theirs."""
    fields = {name: _pick(getattr(mine, name), getattr(base, name), getattr(theirs, name)) for name in _THREAD_FIELDS}
    values = (
        (key, _pick(mine.metadata.get(key, _MISSING), base.metadata.get(key, _MISSING), theirs.metadata.get(key, _MISSING)))
        for key in {**theirs.metadata, **mine.metadata}
    )
    fields["metadata"] = {key: value for key, value in values if value is not _MISSING}
    return fields


def _pick(mine: Any, base: Any, theirs: Any) -> Any:
    return theirs if mine == base else mine


def _is_pending(item: ThreadItem) -> bool:
    return isinstance(item, ClientToolCallItem) and item.status == "pending"


def _thread_data(thread: ThreadMetadata) -> str:
    return storable(to_json(in_utc(thread), partial(ThreadMetadata.model_dump_json, exclude={"items"})), _read_thread)


def _read_thread(data: str) -> ThreadMetadata:
    return in_local_time(parsed(ThreadMetadata.model_validate_json, data))
