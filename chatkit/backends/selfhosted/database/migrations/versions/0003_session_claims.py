"""Add the agent and the claims of a signed-in user to sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chat_sessions", sa.Column("agent", sa.String(255), nullable=True))
    op.add_column("chat_sessions", sa.Column("claims", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("chat_sessions", "claims")
    op.drop_column("chat_sessions", "agent")
