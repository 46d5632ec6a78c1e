"""Sends the messages: chains of steps, and outcomes to those who wait.

Nothing here may fail an operation: what is not sent now is sent by the sweeper.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any
from uuid import UUID

import structlog
from celery import Celery, chain
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.errors import from_wire
from innkeeper.states import OperationState, StepState
from models.instance import Instance
from models.operation import Operation, Step
from models.operations import list_ended
from models.session import Database
from models.sweep import (
    OUTCOMES_BATCH,
    list_unpublished_outcomes,
    mark_outcomes_published,
    unpublish_recent_outcomes,
)
from tasks.crashpoints import crash_point
from tasks.workflow import Ring, queue_for, task_name

log = structlog.get_logger(__name__)

ON_THE_WAY_BACK = frozenset({StepState.UNDO, StepState.UNDOING})
UNFINISHED = ON_THE_WAY_BACK | {StepState.QUEUED, StepState.RUNNING}
# How long after its end an operation's outcome is published again when Redis has lost it.
RESTORE_WITHIN_S = 3600.0
# After Redis has been emptied there are many outcomes to publish again, and callers who wait.
MOST_BATCHES = 20
MARKER = "innkeeper:outcomes-are-here"
UNREACHABLE = (OperationalError, RedisError, OSError, RuntimeError)


def list_rings(session: Session, operation_id: UUID) -> list[Ring]:
    """Return the operation's remaining steps in the order in which they must be rung."""
    operation = session.get(Operation, operation_id)
    if operation is None or (operation.state.is_final and operation.owes_since is None):
        return []
    name = session.scalar(select(Instance.name).where(Instance.id == operation.instance_id))
    unfinished = session.scalars(
        select(Step)
        .where(Step.operation_id == operation_id, Step.state.in_(UNFINISHED))
        .order_by(Step.position)
    ).all()
    back = [step for step in reversed(unfinished) if step.state in ON_THE_WAY_BACK]
    is_undo = bool(back)
    steps = back or unfinished
    return [
        Ring(
            operation_id=operation_id,
            position=step.position,
            kind=operation.kind,
            step=step.name,
            host=step.host,
            is_undo=is_undo,
            summary=f"{name or operation.instance_id or operation.kind}"
            + (f" on {step.host}" if step.host else "")
            + _describe_way(operation),
        )
        for step in steps
    ]


def _describe_way(operation: Operation) -> str:
    if operation.src_host is None:
        return ""
    return f" ({' → '.join(filter(None, (operation.src_host, operation.dst_host)))})"


class Bells:
    """Publishes; a failure is logged and left to the sweeper."""

    def __init__(self, app: Celery, database: Database) -> None:
        self._app = app
        self._database = database
        self._is_making_up = Lock()

    def ring(self, operation_id: UUID) -> None:
        """Send the chain of an operation's remaining steps."""
        rings = self._database.run(lambda session: list_rings(session, operation_id))
        if not rings:
            return
        try:
            chain(*[self._signature(ring) for ring in rings]).apply_async()
        except UNREACHABLE as exc:
            log.warning("bell not rung", operation=str(operation_id), error=str(exc))

    def _signature(self, ring: Ring) -> Any:
        name = task_name(ring.kind, ring.step, is_undo=ring.is_undo)
        return self._app.signature(
            name,
            kwargs={"operation_id": str(ring.operation_id), "position": ring.position},
            immutable=True,
        ).set(
            queue=queue_for(ring.host),
            ignore_result=True,
            argsrepr="",
            kwargsrepr=ring.summary,
            root_id=str(ring.operation_id),
        )

    def publish_outcome(self, operation_id: UUID) -> None:
        """Store an ended operation's result or error under every task id that waits for it."""
        self.publish_outcomes([operation_id])

    def make_up_outcomes(self) -> int:
        """Publish what was not published when it should have been.

        After Redis has been emptied these are many. One thread of a process does it: each further
        one would publish the same ones again, and all would be the later for it.

        Returns:
            How many were published.
        """
        if not self._is_making_up.acquire(blocking=False):
            return 0
        try:
            self._restore_outcomes()
            made_up = 0
            for _ in range(MOST_BATCHES):
                published = self.publish_outcomes(self._database.run(list_unpublished_outcomes))
                made_up += published
                if published < OUTCOMES_BATCH:
                    break
            return made_up
        finally:
            self._is_making_up.release()

    def publish_outcomes(self, operation_ids: Sequence[UUID]) -> int:
        """Store the outcomes of those operations that have ended; the others are passed over.

        Returns:
            How many the result backend has taken.
        """
        ended = self._database.run(lambda session: list_ended(session, operation_ids))
        published: list[UUID] = []
        try:
            for operation, task_ids in ended:
                crash_point(f"outcome.{operation.kind}", "publishing")
                for task_id in task_ids:
                    store_outcome(self._app, task_id, operation)
                crash_point(f"outcome.{operation.kind}", "published")
                published.append(operation.id)
        except UNREACHABLE as exc:
            log.warning("outcomes not published", outcomes=len(ended), error=str(exc))
        if published:
            self._database.run(lambda session: mark_outcomes_published(session, published))
        return len(published)

    def _restore_outcomes(self) -> None:
        """Have recent outcomes published again when the result backend has been emptied.

        A marker in Redis bears the id of the server's run: it is missing after a FLUSHALL, and
        another one's after a restart, which may have lost the last second of its file.
        """
        try:
            redis = self._app.backend.client
            run_id = redis.info("server")["run_id"]
            marker = redis.get(MARKER)
            if marker is not None and marker.decode() == run_id:
                return
            count = self._database.run(
                lambda session: unpublish_recent_outcomes(session, within_s=RESTORE_WITHIN_S)
            )
            redis.set(MARKER, run_id)
        except UNREACHABLE as exc:
            log.warning("outcomes not looked after", error=str(exc))
            return
        log.info("the result backend is another than before", outcomes=count)


def store_outcome(app: Celery, task_id: UUID, operation: Operation) -> None:
    """Store an operation's outcome as a Celery result."""
    if operation.state == OperationState.SUCCEEDED:
        app.backend.store_result(str(task_id), operation.result, "SUCCESS")
    else:
        error = from_wire(operation.error or {})
        app.backend.store_result(str(task_id), error, "FAILURE", traceback=None)
