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

from innkeeper.errors import from_wire
from innkeeper.states import OperationState, StepState
from models.remaining import Outcome, RemainingStep, list_outcomes, list_remaining
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
# How long after its end an operation's outcome is published again when Redis has lost it.
RESTORE_WITHIN_S = 3600.0
# After Redis has been emptied there are many outcomes to publish again, and callers who wait.
MOST_BATCHES = 20
MARKER = "innkeeper:outcomes-are-here"
UNREACHABLE = (OperationalError, RedisError, OSError, RuntimeError)


def list_rings(operation_id: UUID, remaining: Sequence[RemainingStep]) -> list[Ring]:
    """Return the messages of an operation's remaining steps, in the order in which they are rung.

    Args:
        operation_id: the operation.
        remaining: its steps by position.
    """
    back = [step for step in reversed(remaining) if step.state in ON_THE_WAY_BACK]
    return [
        Ring(
            operation_id=operation_id,
            position=step.position,
            kind=step.kind,
            step=step.name,
            host=step.host,
            is_undo=bool(back),
            summary=step.subject + (f" on {step.host}" if step.host else "") + _describe_way(step),
        )
        for step in back or remaining
    ]


def _describe_way(step: RemainingStep) -> str:
    if step.src_host is None:
        return ""
    return f" ({' → '.join(filter(None, (step.src_host, step.dst_host)))})"


class Bells:
    """Publishes; a failure is logged and left to the sweeper."""

    def __init__(self, app: Celery, database: Database) -> None:
        self._app = app
        self._database = database
        self._is_making_up = Lock()

    def ring(self, operation_id: UUID) -> bool:
        """Send the chain of an operation's remaining steps.

        Returns:
            Whether there are any; False says that it has ended.
        """
        remaining = self._database.run_one(
            lambda connection: list_remaining(connection, operation_id)
        )
        rings = list_rings(operation_id, remaining)
        if not rings:
            return False
        try:
            chain(*[self._signature(ring) for ring in rings]).apply_async()
        except UNREACHABLE as exc:
            log.warning("bell not rung", operation=str(operation_id), error=str(exc))
        return True

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
        return self.publish(
            self._database.run_one(lambda connection: list_outcomes(connection, operation_ids))
        )

    def publish(self, ended: Sequence[Outcome]) -> int:
        """Store outcomes for those who wait, and write down that this was done.

        Returns:
            How many the result backend has taken.
        """
        published: list[UUID] = []
        try:
            for outcome in ended:
                crash_point(f"outcome.{outcome.kind}", "publishing")
                for task_id in outcome.task_ids:
                    store_outcome(self._app, task_id, outcome)
                crash_point(f"outcome.{outcome.kind}", "published")
                published.append(outcome.operation_id)
        except UNREACHABLE as exc:
            log.warning("outcomes not published", outcomes=len(ended), error=str(exc))
        if published:
            self._database.run_one(
                lambda connection: mark_outcomes_published(connection, published)
            )
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


def store_outcome(app: Celery, task_id: UUID, outcome: Outcome) -> None:
    """Store how an operation has ended as a Celery result."""
    if outcome.state == OperationState.SUCCEEDED:
        app.backend.store_result(str(task_id), outcome.result, "SUCCESS")
    else:
        error = from_wire(outcome.error or {})
        app.backend.store_result(str(task_id), error, "FAILURE", traceback=None)
