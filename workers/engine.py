"""Builds the engine of a worker process from its settings."""

import os
import uuid
from collections.abc import Callable
from uuid import UUID

from celery import Celery

from models.session import Database
from tasks.bells import Bells
from tasks.catalogue import WORKFLOWS
from tasks.chores import register_chores
from tasks.context import HostServices
from tasks.engine import Engine
from tasks.fencing_hook import FencingHook
from tasks.leases import LeaseKeeper
from tasks.own_queue import OwnQueue
from tasks.registration import register_tasks
from workers.app import build_app
from workers.notifications import EventBell
from workers.secret_keys import load_keyring
from workers.settings import Settings


def make_owner(node: str) -> str:
    """Return the name under which this very process holds leases."""
    return f"{node}#{os.getpid()}-{uuid.uuid4().hex[:8]}"


def build_engine(
    settings: Settings,
    *,
    node: str,
    services: HostServices | None,
    look_again: Callable[[UUID], None] = lambda _instance_id: None,
) -> tuple[Celery, Engine]:
    """Build the Celery application with every task, and the engine behind them.

    Args:
        settings: this process's settings.
        node: this process's role and host, as it stands before ``#`` in leases.
        services: the hypervisor's parts; None for control.
        look_again: has a guest's power state read once more.
    """
    app = build_app(settings, node=node)
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.concurrency,
        application_name=f"innkeeper {node}",
        prepared_statements=settings.prepared_statements,
        on_news=EventBell(app, settings.event_stream).ring,
    )
    engine = Engine(
        database=database,
        workflows=WORKFLOWS,
        leases=LeaseKeeper(database, make_owner(node), lease_s=settings.lease_s),
        bells=Bells(app, database),
        services=services,
        look_again=look_again,
        tls_rule=settings.migration_tls,
        keyring=load_keyring(settings.secret_key_file),
        fencing_hook=FencingHook(settings.fencing_hook, settings.fencing_timeout_s)
        if settings.fencing_hook
        else None,
        migration_defaults=settings.migration_defaults,
    )
    register_everything(app, lambda: engine, engine.own_queue)
    return app, engine


def register_everything(
    app: Celery, engine: Callable[[], Engine], own_queue: OwnQueue | None = None
) -> None:
    """Register every task of this release with an application."""
    register_tasks(app, engine, own_queue)
    register_chores(app, engine)
    app.finalize()
