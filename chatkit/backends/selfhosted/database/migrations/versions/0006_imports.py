"""Create the table of imported threads."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chat_imports",
        sa.Column("thread_id", sa.String(64), nullable=False),
        sa.Column("last_item_id", sa.String(128), nullable=True),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("thread_id", name="pk_chat_imports"),
    )


def downgrade() -> None:
    op.drop_table("chat_imports")
