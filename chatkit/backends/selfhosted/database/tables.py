"""All tables of the self-hosted backend. A change here needs a migration.

They have a module of their own so that migrations do not import OpenAI's packages, which takes seconds.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DIALECTS: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql}
"""By name, the dialects whose ``insert`` has ``ON CONFLICT``."""

_Position = BigInteger().with_variant(Integer, "sqlite")  # the only type that SQLite autoincrements


def _thread_key(table: str) -> ForeignKeyConstraint:
    """Delete the rows of ``table`` with their thread, and transfer them with it to another user."""
    return ForeignKeyConstraint(
        ["thread_id", "user_id"],
        ["chat_threads.id", "chat_threads.user_id"],
        name=f"fk_{table}_thread",
        ondelete="CASCADE",
        onupdate="CASCADE",
    )


class Base(DeclarativeBase):
    """The metadata that Alembic compares the database with."""


class SessionRow(Base):
    __tablename__ = "chat_sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)  # SHA-256; the secret itself is not stored
    user_id: Mapped[str] = mapped_column(String(512))
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)  # Unix seconds
    agent: Mapped[str | None] = mapped_column(String(255))  # User.agent
    claims: Mapped[str | None] = mapped_column(Text)  # User.claims as JSON


class ThreadRow(Base):
    __tablename__ = "chat_threads"

    position: Mapped[int] = mapped_column(_Position, primary_key=True)
    id: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(512))
    used_at: Mapped[int] = mapped_column(BigInteger)  # Unix seconds of the last write
    data: Mapped[str] = mapped_column(Text)  # ThreadMetadata as JSON

    __table_args__ = (
        UniqueConstraint("id", name="uq_chat_threads_id"),
        UniqueConstraint("id", "user_id", name="uq_chat_threads_id_user_id"),
        Index("ix_chat_threads_user_id_position", "user_id", "position"),
        Index("ix_chat_threads_used_at", "used_at"),
    )


class ItemRow(Base):
    __tablename__ = "chat_items"

    position: Mapped[int] = mapped_column(_Position, primary_key=True)
    thread_id: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(512))
    id: Mapped[str] = mapped_column(String(128))
    data: Mapped[str] = mapped_column(Text)  # a ThreadItem as JSON
    feedback: Mapped[str | None] = mapped_column(String(16))

    __table_args__ = (
        _thread_key("chat_items"),
        UniqueConstraint("thread_id", "id", name="uq_chat_items_thread_id_id"),
        Index("ix_chat_items_thread_id_position", "thread_id", "position"),
    )


class AttachmentRow(Base):
    """A file that a user has uploaded, or is about to upload. One that has no message was not sent, or its message is gone."""

    __tablename__ = "chat_attachments"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(512))
    thread_id: Mapped[str | None] = mapped_column(String(64))
    item_id: Mapped[str | None] = mapped_column(String(128))  # the user message
    created_at: Mapped[int] = mapped_column(BigInteger, server_default="0")  # Unix seconds
    size: Mapped[int] = mapped_column(BigInteger, server_default="0")  # bytes, as announced
    data: Mapped[str] = mapped_column(Text)  # an Attachment as JSON

    __table_args__ = (
        _thread_key("chat_attachments"),
        Index("ix_chat_attachments_thread_id", "thread_id"),
        Index("ix_chat_attachments_user_id_created_at", "user_id", "created_at"),
    )


class AttachmentContentRow(Base):
    """The bytes of an attachment. Apart from its row, because SQLite writes all of a row whose user or message changes."""

    __tablename__ = "chat_attachment_contents"

    attachment_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (
        ForeignKeyConstraint(
            ["attachment_id"],
            ["chat_attachments.id"],
            name="fk_chat_attachment_contents_attachment",
            ondelete="CASCADE",
        ),
    )


class ImportRow(Base):
    """A thread that ``import-hosted`` has stored. The row outlives the thread: a deleted thread is not imported again."""

    __tablename__ = "chat_imports"

    thread_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_item_id: Mapped[str | None] = mapped_column(String(128))  # the newest item that was read; later ones are new
    items: Mapped[int] = mapped_column(Integer)  # in the thread, after the import
    used_at: Mapped[int] = mapped_column(
        BigInteger
    )  # ThreadRow.used_at after the import, which differs once the thread is used here


class UsageRow(Base):
    __tablename__ = "chat_usage"

    position: Mapped[int] = mapped_column(_Position, primary_key=True)
    user_id: Mapped[str] = mapped_column(String(512))
    day: Mapped[date] = mapped_column(Date)  # in UTC
    agent: Mapped[str] = mapped_column(String(255))
    requests: Mapped[int] = mapped_column(BigInteger)  # to models
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    total_tokens: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        UniqueConstraint("user_id", "day", "agent", name="uq_chat_usage_user_id_day_agent"),
        Index("ix_chat_usage_day", "day"),
    )


class PausedRunRow(Base):
    """A run of an agent that waits for the user's decisions on tool calls. A thread has at most one."""

    __tablename__ = "chat_paused_runs"

    thread_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(512))
    decisions: Mapped[str] = mapped_column(Text)  # PausedRun.decisions as JSON
    state: Mapped[str] = mapped_column(Text)  # the Agents SDK's RunState as JSON, see chat/run_states.py

    __table_args__ = (_thread_key("chat_paused_runs"),)


class ImageRow(Base):
    """The image of a generated_image item, which refers to it. Not bound to the row of the item, which may be recreated."""

    __tablename__ = "chat_images"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(512))
    thread_id: Mapped[str] = mapped_column(String(64))
    item_id: Mapped[str] = mapped_column(String(128))
    media_type: Mapped[str] = mapped_column(String(64))
    data: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (
        _thread_key("chat_images"),
        UniqueConstraint("thread_id", "item_id", name="uq_chat_images_thread_id_item_id"),
    )


class ActiveRunRow(Base):
    """A response that is being produced, or one that was interrupted."""

    __tablename__ = "chat_active_runs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    thread_id: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(512))
    started_at: Mapped[int] = mapped_column(BigInteger)  # Unix seconds
    heartbeat: Mapped[int] = mapped_column(BigInteger)  # Unix seconds; 0 if the run was interrupted
    stop_requested: Mapped[bool] = mapped_column(Boolean)
    is_repeatable: Mapped[bool] = mapped_column(Boolean, server_default=true())  # ChatContext.is_repeatable

    __table_args__ = (
        _thread_key("chat_active_runs"),
        Index("ix_chat_active_runs_thread_id", "thread_id"),
    )
