"""Alembic's environment, run by ``engine.migrate()`` at startup and by the ``alembic`` command."""

from alembic import context

from chatkit.backends.selfhosted.database.engine import make_engine
from chatkit.backends.selfhosted.database.tables import Base
from chatkit.settings import load

connection = context.config.attributes.get("connection") or make_engine(load().database_url).connect()
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
