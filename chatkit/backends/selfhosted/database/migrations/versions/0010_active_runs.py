"""Create the table of responses that are being produced."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chat_active_runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("thread_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(512), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat", sa.BigInteger(), nullable=False),
        sa.Column("stop_requested", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chat_active_runs"),
        sa.ForeignKeyConstraint(
            ["thread_id", "user_id"],
            ["chat_threads.id", "chat_threads.user_id"],
            name="fk_chat_active_runs_thread",
            ondelete="CASCADE",
            onupdate="CASCADE",
        ),
    )
    op.create_index("ix_chat_active_runs_thread_id", "chat_active_runs", ["thread_id"])
    if op.get_bind().dialect.name == "sqlite":  # for the sqlite3 shell, see 0005
        delete = "DELETE FROM chat_active_runs WHERE thread_id = OLD.id;"
        op.execute(f"CREATE TRIGGER chat_threads_delete_active_runs AFTER DELETE ON chat_threads BEGIN {delete} END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER chat_threads_delete_active_runs")
    op.drop_table("chat_active_runs")
