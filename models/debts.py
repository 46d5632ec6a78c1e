"""What an ended operation still owes.

An operation ends at its deadline, also when a host that did a part of it is away. The steps that
only this host can do stay in the ledger, on the way back or forward, and ``owes_since`` says so:
they are rung, claimed and recorded like any other step once the host is there again.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Overdue:
    """A live operation whose time has been over for a while."""

    operation_id: UUID
    kind: str
    limit_s: float


def list_overdue(session: Session, *, grace_s: float, batch: int = 100) -> list[Overdue]:
    """Return operations that have not managed to end by themselves.

    Args:
        session: an open transaction.
        grace_s: how long after the deadline a way back may still take.
        batch: how many at most.
    """
    rows = session.execute(
        text(
            """
            SELECT id, kind, EXTRACT(EPOCH FROM deadline_at - created_at)::float
              FROM operations
             WHERE state IN ('queued', 'running', 'undoing')
               AND deadline_at < clock_timestamp() - make_interval(secs => :grace_s)
             ORDER BY deadline_at LIMIT :batch
            """
        ),
        {"grace_s": grace_s, "batch": batch},
    )
    return [Overdue(*row) for row in rows]


def turn_all_back(session: Session, operation_id: UUID, undoable: frozenset[str]) -> None:
    """Send every step back, also those whose owner has not been heard of: it loses its claim.

    Args:
        session: an open transaction.
        operation_id: the operation.
        undoable: names of the steps that have an undo; the others are skipped.
    """
    session.execute(
        text(
            """
            UPDATE steps s
               SET state = t.state, owner = NULL, lease_expires_at = NULL, rung_at = NULL,
                   not_before = clock_timestamp(),
                   failures = CASE WHEN t.state = 'undo' THEN 0
                                   WHEN s.state = 'running' THEN s.failures + 1
                                   ELSE s.failures END
              FROM (SELECT position,
                           CASE WHEN state IN ('undo', 'undoing') THEN 'undo'
                                WHEN name = ANY(:undoable)
                                     AND (state <> 'queued' OR attempt > 0) THEN 'undo'
                                ELSE 'skipped' END AS state
                      FROM steps
                     WHERE operation_id = :o
                       AND (state IN ('queued', 'running', 'undo', 'undoing')
                            OR (state IN ('done', 'failed') AND name = ANY(:undoable)))) t
             WHERE s.operation_id = :o AND s.position = t.position
            """
        ),
        {"o": operation_id, "undoable": list(undoable)},
    )


def release_running(session: Session, operation_id: UUID) -> None:
    """Take the running steps from owners that have not been heard of; they wait to be begun."""
    session.execute(
        text(
            """
            UPDATE steps
               SET state = CASE WHEN state = 'undoing' THEN 'undo' ELSE 'queued' END,
                   owner = NULL, lease_expires_at = NULL, rung_at = NULL,
                   not_before = clock_timestamp()
             WHERE operation_id = :o AND state IN ('running', 'undoing')
            """
        ),
        {"o": operation_id},
    )


def list_unfinished(session: Session, operation_id: UUID) -> list[str]:
    """Return the names of the steps that are yet to be done or undone."""
    rows = session.execute(
        text(
            "SELECT name FROM steps WHERE operation_id = :o "
            "AND state IN ('queued', 'running', 'undo', 'undoing') ORDER BY position"
        ),
        {"o": operation_id},
    )
    return [row.name for row in rows]


def find_current_step(session: Session, operation_id: UUID) -> dict[str, str | None]:
    """Return the name and the host of the step at which an operation is; empty when at none."""
    row = session.execute(
        text(
            "SELECT name, host FROM steps WHERE operation_id = :o "
            "AND state IN ('queued', 'running') ORDER BY position LIMIT 1"
        ),
        {"o": operation_id},
    ).one_or_none()
    return {} if row is None else {"step": row.name, "host": row.host}


def owe(session: Session, operation_id: UUID) -> None:
    """Record that an ended operation's unfinished steps are still to be done."""
    session.execute(
        text("UPDATE operations SET owes_since = clock_timestamp() WHERE id = :o"),
        {"o": operation_id},
    )


def find_holder(session: Session, operation_id: UUID) -> str | None:
    """Return the kind of the live operation that holds the guest of an ended one, or None."""
    kind: str | None = session.execute(
        text(
            """
            SELECT h.kind FROM operations o
              JOIN instances i ON i.id = o.instance_id
              JOIN operations h ON h.id = i.operation_id
             WHERE o.id = :o
            """
        ),
        {"o": operation_id},
    ).scalar()
    return kind
