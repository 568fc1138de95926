"""Create the tables of threads, items and attachments."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "chat_threads",
        sa.Column("position", position, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(512), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_chat_threads"),
        sa.UniqueConstraint("id", name="uq_chat_threads_id"),
        sa.UniqueConstraint("id", "user_id", name="uq_chat_threads_id_user_id"),
    )
    op.create_index("ix_chat_threads_user_id_position", "chat_threads", ["user_id", "position"])
    op.create_index("ix_chat_threads_used_at", "chat_threads", ["used_at"])
    op.create_table(
        "chat_items",
        sa.Column("position", position, nullable=False),
        sa.Column("thread_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(512), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("feedback", sa.String(16), nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_chat_items"),
        sa.ForeignKeyConstraint(
            ["thread_id", "user_id"],
            ["chat_threads.id", "chat_threads.user_id"],
            name="fk_chat_items_thread",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("thread_id", "id", name="uq_chat_items_thread_id_id"),
    )
    op.create_index("ix_chat_items_thread_id_position", "chat_items", ["thread_id", "position"])
    op.create_table(
        "chat_attachments",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(512), nullable=False),
        sa.Column("thread_id", sa.String(64), nullable=True),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chat_attachments"),
        sa.ForeignKeyConstraint(
            ["thread_id", "user_id"],
            ["chat_threads.id", "chat_threads.user_id"],
            name="fk_chat_attachments_thread",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_chat_attachments_thread_id", "chat_attachments", ["thread_id"])


def downgrade() -> None:
    for table in ("chat_attachments", "chat_items", "chat_threads"):
        op.drop_table(table)
