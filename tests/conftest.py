"""Fixtures that start what the tests need and take it down, also when the test run is killed."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import settings
from sqlalchemy import create_engine, make_url, text

from lab.handle import Lab
from models.session import Database
from tests.crash_directory import VARIABLE, CrashDirectory

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two hypervisors with workers, control, beat, Postgres and Redis."""
    with start_lab(hosts=2) as running:
        yield running


@contextmanager
def start_lab(*, hosts: int) -> Iterator[Lab]:
    """A lab of its own with workers, whose processes look whether they are to die."""
    with tempfile.TemporaryDirectory(prefix="innkeeper-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        with Lab.up(
            Path(directory),
            hosts=hosts,
            workers=True,
            owner_pid=os.getpid(),
            # Tests of hydration say when.
            env={
                VARIABLE: str(Path(directory) / "crash"),
                "INNKEEPER_HYDRATION_DELAY_S": "3600",
            },
        ) as running:
            yield running


@pytest.fixture(scope="session")
def crash(lab: Lab) -> CrashDirectory:
    """Where the lab's processes look whether they are to die."""
    return CrashDirectory(lab.layout.root / "crash")


@pytest.fixture(scope="session")
def services_env() -> Iterator[dict[str, str]]:
    """Where an empty Postgres and an empty Redis are, without workers."""
    with tempfile.TemporaryDirectory(prefix="innkeeper-pg-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        with Lab.up(Path(directory), hosts=1, workers=False, owner_pid=os.getpid()) as running:
            yield running.env()


@pytest.fixture(scope="session")
def postgres_url(services_env: dict[str, str]) -> str:
    """An empty Postgres of its own, without hypervisors."""
    return services_env["INNKEEPER_DATABASE_URL"]


def alembic_config(url: str) -> Config:
    config = Config(str(ROOT / "alembic.ini"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


@pytest.fixture
def fresh_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database that is dropped afterwards."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    url = make_url(postgres_url).set(database=name)
    yield url.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


@pytest.fixture
def database(fresh_url: str) -> Iterator[Database]:
    """A database with the schema."""
    command.upgrade(alembic_config(fresh_url), "head")
    database = Database(fresh_url, application_name="tests")
    yield database
    database.dispose()
