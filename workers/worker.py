"""Starts a Celery worker with the options that both roles share."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import structlog
from celery import Celery
from celery.signals import task_postrun, worker_ready, worker_shutting_down
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models import ledger, sweep
from tasks.engine import Engine
from tasks.own_queue import let_go_of_next
from workers.interpreter import tune_interpreter

log = structlog.get_logger(__name__)

RETRY_S = 0.5


def run_worker(
    app: Celery,
    engine: Engine,
    *,
    node: str,
    queue: str,
    concurrency: int,
    ready_file: Path | None,
    on_stop: Callable[[], None],
) -> int:
    """Consume until told to stop.

    Args:
        app: the application with its tasks.
        engine: this process's engine.
        node: role and host.
        queue: the only queue that is consumed.
        concurrency: threads.
        ready_file: touched once the worker consumes.
        on_stop: called when the worker has stopped consuming.

    Returns:
        The exit code.
    """
    engine.leases.start()

    def take_over() -> None:
        while not _has_adopted(engine, node=node):
            time.sleep(RETRY_S)
        if ready_file is not None:
            ready_file.parent.mkdir(parents=True, exist_ok=True)
            ready_file.touch()
        log.info("worker ready", queue=queue)

    def ready(sender: object, **_: object) -> None:
        engine.own_queue.open(sender, queue)
        tune_interpreter()
        # Not in the consumer's thread, which Postgres may keep waiting.
        threading.Thread(target=take_over, name="take-over", daemon=True).start()

    def shutting_down(**_: object) -> None:
        engine.own_queue.close()
        log.info("worker shutting down")

    worker_ready.connect(ready, weak=False)
    worker_shutting_down.connect(shutting_down, weak=False)
    task_postrun.connect(let_go_of_next, weak=False)
    worker = app.Worker(
        hostname=f"{node}@innkeeper",
        pool="threads",
        concurrency=concurrency,
        queues=[queue],
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        heartbeat_interval=30,
        optimization="fair",
        loglevel="INFO",
    )
    try:
        worker.start()
    finally:
        on_stop()
        engine.leases.stop()
    return int(worker.exitcode or 0)


def _has_adopted(engine: Engine, *, node: str) -> bool:
    """Take over what the predecessor had in hand; False when Postgres is away, too."""
    try:
        adopt_predecessors_steps(engine, node=node)
    except SQLAlchemyError as exc:
        log.warning("postgres is out of reach, nothing is taken over yet", error=str(exc))
        return False
    return True


def _list_unheard(session: Session, engine: Engine) -> set[UUID]:
    """Return operations whose message the predecessor may have taken to its grave."""
    if engine.services is not None:
        return set(sweep.list_bells_of_host(session, engine.services.name))
    return {bell.operation_id for bell in sweep.take_due_bells(session, grace_s=0)}


def adopt_predecessors_steps(engine: Engine, *, node: str) -> None:
    """Begin again, at once, what this node's dead predecessor had in hand or was about to ring.

    Safe because two workers of one node never live at once: see ``node_lock``.
    """
    owner = engine.leases.owner

    def find(session: Session) -> set[UUID]:
        held = ledger.release_predecessors(session, node=node, owner=owner)
        return {operation_id for operation_id, _ in held} | _list_unheard(session, engine)

    for operation_id in engine.database.run(find):
        log.info("adopting", operation=str(operation_id))
        engine.bells.ring(operation_id)
    # Operations that it ended and could tell nobody of.
    engine.bells.publish_outcomes(
        engine.database.run(
            lambda session: sweep.list_unpublished_outcomes(session, ended_before_s=0.5)
        )
    )
