"""Create the table of sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chat_sessions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(512), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chat_sessions"),
        sa.UniqueConstraint("secret_hash", name="uq_chat_sessions_secret_hash"),
    )
    op.create_index("ix_chat_sessions_expires_at", "chat_sessions", ["expires_at"])


def downgrade() -> None:
    op.drop_table("chat_sessions")
