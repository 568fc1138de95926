"""Create the table of attachments' contents, and add the message, the time and the size to attachments."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chat_attachments", sa.Column("item_id", sa.String(128)))
    op.add_column("chat_attachments", sa.Column("created_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("chat_attachments", sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_chat_attachments_user_id_created_at", "chat_attachments", ["user_id", "created_at"])
    op.create_table(
        "chat_attachment_contents",
        sa.Column("attachment_id", sa.String(64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("attachment_id", name="pk_chat_attachment_contents"),
        sa.ForeignKeyConstraint(
            ["attachment_id"], ["chat_attachments.id"], name="fk_chat_attachment_contents_attachment", ondelete="CASCADE"
        ),
    )
    if op.get_bind().dialect.name == "sqlite":  # for the sqlite3 shell, see 0005
        delete = "DELETE FROM chat_attachment_contents WHERE attachment_id = OLD.id;"
        op.execute(f"CREATE TRIGGER chat_attachments_delete AFTER DELETE ON chat_attachments BEGIN {delete} END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER chat_attachments_delete")
    op.drop_table("chat_attachment_contents")
    op.drop_index("ix_chat_attachments_user_id_created_at", "chat_attachments")
    op.drop_column("chat_attachments", "size")
    op.drop_column("chat_attachments", "created_at")
    op.drop_column("chat_attachments", "item_id")
