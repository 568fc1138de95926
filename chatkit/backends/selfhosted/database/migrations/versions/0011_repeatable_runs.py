"""Mark the active runs that a retry would repeat. Those that are active during the migration count as such."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a default, because processes of the previous version insert rows without it.
    op.add_column("chat_active_runs", sa.Column("is_repeatable", sa.Boolean(), nullable=False, server_default=sa.true()))


def downgrade() -> None:
    op.drop_column("chat_active_runs", "is_repeatable")
