"""Alembic's entry: run by ``chatkit.database.migrate`` at start-up, and by ``alembic`` on a developer's command line."""

from alembic import context

from chatkit.database import make_engine
from chatkit.settings import load
from chatkit.tables import Base

connection = context.config.attributes.get("connection") or make_engine(load().database_url).connect()
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
