"""In SQLite, delete items and attachments with their thread, also when the sqlite3 shell deletes it.

SQLite enforces foreign keys only on connections that enable them, and the shell does not. A trigger always runs.

A migration that recreates one of these tables, as Alembic's batch mode does, must drop the trigger first and recreate it.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = ("chat_items", "chat_attachments")


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    for table in TABLES:
        op.execute(f"DELETE FROM {table} WHERE thread_id NOT IN (SELECT id FROM chat_threads)")  # noqa: S608
    deletes = " ".join(f"DELETE FROM {table} WHERE thread_id = OLD.id;" for table in TABLES)  # noqa: S608
    op.execute(f"CREATE TRIGGER chat_threads_delete AFTER DELETE ON chat_threads BEGIN {deletes} END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER chat_threads_delete")
