"""The migrations: up, down, and the same as the models."""

from alembic import command
from sqlalchemy import create_engine, inspect

from tests.conftest import alembic_config


def test_upgrade_makes_what_the_models_say(fresh_url: str) -> None:
    config = alembic_config(fresh_url)
    command.upgrade(config, "head")
    command.check(config)


def test_downgrade_leaves_nothing(fresh_url: str) -> None:
    config = alembic_config(fresh_url)
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    engine = create_engine(fresh_url)
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    command.upgrade(config, "head")
    engine.dispose()
