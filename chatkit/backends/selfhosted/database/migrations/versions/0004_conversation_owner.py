"""Update the owner of items and attachments with that of their thread."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COLUMNS = ["thread_id", "user_id"], ["id", "user_id"]
KEYS = {"chat_items": "fk_chat_items_thread", "chat_attachments": "fk_chat_attachments_thread"}


def upgrade() -> None:
    _replace(onupdate="CASCADE")


def downgrade() -> None:
    _replace(onupdate=None)


def _replace(onupdate: str | None) -> None:
    for table, name in KEYS.items():
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(name, type_="foreignkey")
            batch.create_foreign_key(name, "chat_threads", *COLUMNS, ondelete="CASCADE", onupdate=onupdate)
