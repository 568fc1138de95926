"""Create the table of generated images. Images in items that are stored already stay there."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chat_images",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(512), nullable=False),
        sa.Column("thread_id", sa.String(64), nullable=False),
        sa.Column("item_id", sa.String(128), nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chat_images"),
        sa.UniqueConstraint("thread_id", "item_id", name="uq_chat_images_thread_id_item_id"),
        sa.ForeignKeyConstraint(
            ["thread_id", "user_id"],
            ["chat_threads.id", "chat_threads.user_id"],
            name="fk_chat_images_thread",
            ondelete="CASCADE",
            onupdate="CASCADE",
        ),
    )
    if op.get_bind().dialect.name == "sqlite":  # for the sqlite3 shell, see 0005
        delete = "DELETE FROM chat_images WHERE thread_id = OLD.id;"
        op.execute(f"CREATE TRIGGER chat_threads_delete_images AFTER DELETE ON chat_threads BEGIN {delete} END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER chat_threads_delete_images")
    op.drop_table("chat_images")
