"""What the sweeper asks: which bells are due, which operations have lost their way."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from models.claims import HOST_IS_UP_S

OUTCOMES_BATCH = 500


@dataclass(frozen=True, slots=True)
class Bell:
    """A step that should be rung: nobody has begun it in the time a message needs."""

    operation_id: UUID
    position: int
    is_undo: bool


_DUE_BELLS = text(
    """
    WITH turn AS (
        SELECT DISTINCT ON (o.id) o.id AS operation_id,
               s.position, s.state, s.host, s.not_before, s.rung_at, s.rings, s.lease_expires_at
          FROM operations o JOIN steps s ON s.operation_id = o.id
         WHERE (o.state IN ('queued', 'running', 'undoing') OR o.owes_since IS NOT NULL)
           AND s.state IN ('queued', 'running', 'undo', 'undoing')
         ORDER BY o.id,
                  CASE WHEN s.state IN ('undo', 'undoing') THEN -s.position ELSE s.position END
    ), due AS (
        SELECT s.operation_id, s.position
          FROM turn t
          JOIN steps s ON s.operation_id = t.operation_id AND s.position = t.position
          LEFT JOIN hosts h ON h.name = s.host
         WHERE (s.host IS NULL
                OR h.heartbeat_at > clock_timestamp() - make_interval(secs => :up_s))
           AND s.not_before <= clock_timestamp()
           AND ((s.state IN ('queued', 'undo')
                 AND (s.rung_at IS NULL OR s.rung_at < clock_timestamp()
                      - make_interval(secs => :grace_s
                                      * power(2, LEAST(GREATEST(s.rings - 1, 0), 5)))))
             OR (s.state IN ('running', 'undoing')
                 AND s.lease_expires_at <= clock_timestamp()
                 AND (s.rung_at IS NULL OR s.rung_at < clock_timestamp()
                      - make_interval(secs => :grace_s))))
         LIMIT :batch
           FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE steps s SET rung_at = clock_timestamp(), rings = s.rings + 1
      FROM due WHERE s.operation_id = due.operation_id AND s.position = due.position
    RETURNING s.operation_id, s.position, s.state IN ('undo', 'undoing')
    """
)


def take_due_bells(session: Session, *, grace_s: float, batch: int = 200) -> list[Bell]:
    """Mark and return the steps to ring; steps of hosts that are down are left alone.

    Args:
        session: an open transaction.
        grace_s: how long a message may take before it counts as lost; doubled at every ring.
        batch: how many at most.
    """
    rows = session.execute(_DUE_BELLS, {"grace_s": grace_s, "batch": batch, "up_s": HOST_IS_UP_S})
    return [Bell(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Strayed:
    """A live operation that nobody works on and that should turn back or end."""

    operation_id: UUID
    kind: str
    why: str
    cancelled_by: str | None
    limit_s: float


_STRAYED = text(
    """
    SELECT o.id, o.kind,
           CASE WHEN o.state = 'undoing' THEN 'undone'
                WHEN o.cancel_requested THEN 'cancelled' ELSE 'deadline' END,
           o.cancel_requested_by,
           EXTRACT(EPOCH FROM o.deadline_at - o.created_at)::float
      FROM operations o
     WHERE o.state IN ('queued', 'running', 'undoing')
       AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.operation_id = o.id
                          AND s.state IN ('running', 'undoing')
                          AND s.lease_expires_at > clock_timestamp())
       AND CASE WHEN o.state = 'undoing'
                THEN NOT EXISTS (SELECT 1 FROM steps s WHERE s.operation_id = o.id
                                    AND s.state IN ('running', 'undo', 'undoing'))
                ELSE NOT o.is_committed
                     AND (o.cancel_requested OR o.deadline_at < clock_timestamp())
                     AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.operation_id = o.id
                                        AND s.state = 'running') END
     ORDER BY o.created_at LIMIT :batch
    """
)


def list_strayed(session: Session, *, batch: int = 100) -> list[Strayed]:
    """Return operations that are cancelled or late between two steps, or undone but not ended."""
    return [Strayed(*row) for row in session.execute(_STRAYED, {"batch": batch})]


def list_bells_of_host(session: Session, host: str) -> list[UUID]:
    """Return the operations with a part on a host that nobody works on at the moment.

    What a worker that died had just taken from its queue, or was about to ring, is among them.
    """
    rows = session.execute(
        text(
            """
            SELECT DISTINCT s.operation_id
              FROM steps s JOIN operations o ON o.id = s.operation_id
             WHERE s.host = :host
               AND (o.state IN ('queued', 'running', 'undoing') OR o.owes_since IS NOT NULL)
               AND EXISTS (SELECT 1 FROM steps t WHERE t.operation_id = s.operation_id
                              AND t.state IN ('queued', 'undo')
                              AND t.not_before <= clock_timestamp())
               AND NOT EXISTS (SELECT 1 FROM steps t WHERE t.operation_id = s.operation_id
                                  AND t.state IN ('running', 'undoing'))
             LIMIT 200
            """
        ),
        {"host": host},
    )
    return [row.operation_id for row in rows]


def unpublish_recent_outcomes(session: Session, *, within_s: float) -> int:
    """Have the outcomes of the last while published again: the result backend has lost them.

    Args:
        session: an open transaction.
        within_s: how far back.

    Returns:
        How many operations.
    """
    result = session.execute(
        text(
            """
            UPDATE operations SET outcome_published_at = NULL
             WHERE outcome_published_at IS NOT NULL
               AND finished_at > clock_timestamp() - make_interval(secs => :within_s)
            """
        ),
        {"within_s": within_s},
    )
    return int(result.rowcount)  # type: ignore[attr-defined]


def list_unpublished_outcomes(
    session: Session, *, ended_before_s: float = 2.0, batch: int = OUTCOMES_BATCH
) -> list[UUID]:
    """Return ended operations whose outcome has not reached the result backend.

    Args:
        session: an open transaction.
        ended_before_s: how long ago at least; whoever has just ended one is about to publish it.
        batch: how many at most.
    """
    rows = session.execute(
        text(
            """
            SELECT id FROM operations
             WHERE finished_at IS NOT NULL AND outcome_published_at IS NULL
               AND finished_at < clock_timestamp() - make_interval(secs => :ended_before_s)
             ORDER BY finished_at LIMIT :batch
            """
        ),
        {"batch": batch, "ended_before_s": ended_before_s},
    )
    return [row.id for row in rows]


def mark_outcomes_published(connection: Connection, operation_ids: Sequence[UUID]) -> None:
    """Record that the result backend has the outcomes."""
    connection.execute(
        text(
            "UPDATE operations SET outcome_published_at = clock_timestamp() "
            "WHERE id = ANY(CAST(:ids AS uuid[]))"
        ),
        {"ids": list(operation_ids)},
    )
