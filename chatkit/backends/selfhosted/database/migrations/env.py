"""Alembic's entry: run by ``migrate`` in ``engine.py`` at start-up, and by ``alembic`` on a developer's command line."""

from alembic import context

from chatkit.backends.selfhosted.database.engine import make_engine
from chatkit.backends.selfhosted.database.tables import Base
from chatkit.settings import load

connection = context.config.attributes.get("connection") or make_engine(load().database_url).connect()
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
