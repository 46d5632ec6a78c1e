"""Runs the migrations: one transaction each, bounded locks, one migrator at a time."""

import os

from alembic import context
from sqlalchemy import create_engine, text

from models.schema import metadata

MIGRATION_LOCK = 7_203_118


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url") or os.environ["INNKEEPER_DATABASE_URL"]
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '5s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_type=True,
            compare_server_default=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("Migrations need a database: set INNKEEPER_DATABASE_URL.")
run()
