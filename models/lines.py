"""Who has a place at a step that takes only so many at once, and who waits for one.

A step that was not admitted has ``waiting_since``, its ticket, and no attempt: it was never begun.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from models.claims import HOST_IS_UP_S


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation at such a step.

    Args:
        operation_id: the operation.
        src_host: its source; None for operations on one host.
        dst_host: its destination, or only host.
        is_inside: whether it has its place; else it waits.
        is_heard: whether the host that is to do the step is up.
        waiting_since: its ticket; None for one that never had to wait.
        waiting_for: what it says that it waits for.
        most_out: how many migrations may leave the source at once.
        most_in: how many may arrive at the destination.
        most_on_link: how many may go from this source to this destination.
    """

    operation_id: UUID
    src_host: str | None
    dst_host: str | None
    is_inside: bool
    is_heard: bool
    waiting_since: datetime | None
    waiting_for: str | None
    most_out: int
    most_in: int
    most_on_link: int


_ENTRIES = text(
    """
    WITH entries AS (
        SELECT o.id, o.src_host, o.dst_host, s.waiting_since, s.waiting_for, s.host, s.attempt,
               s.state IN ('running', 'undo', 'undoing') OR s.attempt > 0 AS is_inside
          FROM operations o JOIN steps s ON s.operation_id = o.id
         WHERE o.kind = :kind AND s.name = :step
           AND o.state IN ('queued', 'running', 'undoing')
           AND s.state IN ('queued', 'running', 'undo', 'undoing')
           AND (s.attempt > 0
                OR (s.waiting_since IS NOT NULL AND NOT o.cancel_requested
                    AND COALESCE(o.deadline_at > clock_timestamp(), true)))
           AND (s.state <> 'queued' OR s.attempt = 0 OR :keeps_place)
    )
    SELECT e.id, e.src_host, e.dst_host, e.is_inside,
           COALESCE(h.heartbeat_at > clock_timestamp() - make_interval(secs => :up_s), false),
           e.waiting_since, e.waiting_for,
           COALESCE(src.max_migrations_out, 1), COALESCE(dst.max_migrations_in, 1),
           COALESCE(src.max_migrations_per_link, 1)
      FROM entries e
      LEFT JOIN hosts h ON h.name = e.host
      LEFT JOIN hosts src ON src.name = e.src_host
      LEFT JOIN hosts dst ON dst.name = e.dst_host
     WHERE e.dst_host = :dst OR e.src_host = :src
        OR e.src_host IN (SELECT src_host FROM entries WHERE dst_host = :dst)
     ORDER BY e.waiting_since NULLS LAST, e.id
    """
)


_SOMEBODY_WAITS = text(
    "SELECT EXISTS (SELECT 1 FROM steps WHERE state = 'queued' AND waiting_since IS NOT NULL)"
)


def does_somebody_wait(connection: Connection) -> bool:
    """Tell whether anybody stands in any line; asked before a line is read."""
    return bool(connection.execute(_SOMEBODY_WAITS).scalar_one())


def list_entries(
    session: Session,
    *,
    kind: str,
    step: str,
    src: str | None,
    dst: str | None,
    keeps_place: bool,
) -> list[Entry]:
    """Return who is at a step, in the order of their tickets.

    Whoever shares the source or the destination, and whoever shares a source with these: nobody
    else can stand before an operation between the two.

    Args:
        session: an open transaction.
        kind: of the operations.
        step: the step's name.
        src: the source; None where there is none.
        dst: the destination.
        keeps_place: whether a step that was begun and waits to be begun again keeps its place.
    """
    rows = session.execute(
        _ENTRIES,
        {
            "kind": kind,
            "step": step,
            "src": src,
            "dst": dst,
            "keeps_place": keeps_place,
            "up_s": HOST_IS_UP_S,
        },
    )
    return [Entry(*row) for row in rows]


def call_in(session: Session, operation_ids: list[UUID], *, step: str) -> list[UUID]:
    """Mark those who wait at a step, and whose turn it may be, as rung.

    Returns:
        The operations to ring for.
    """
    return _change(
        session,
        "not_before = clock_timestamp(), rung_at = clock_timestamp(), rings = 1",
        {"ids": operation_ids, "step": step},
    )


def tell_places(session: Session, texts: dict[UUID, str], *, step: str) -> None:
    """Write what those who wait at a step wait for by now."""
    for operation_id, waiting_for in sorted(texts.items()):
        _change(
            session,
            "waiting_for = :waiting_for",
            {"ids": [operation_id], "step": step, "waiting_for": waiting_for},
        )


def _change(session: Session, assignments: str, values: dict[str, Any]) -> list[UUID]:
    if not values["ids"]:
        return []
    # In one order, so that two who call do not wait for each other.
    rows = session.execute(
        text(
            f"""
            UPDATE steps s SET {assignments}
              FROM (SELECT operation_id, position FROM steps
                     WHERE operation_id = ANY(CAST(:ids AS uuid[])) AND name = :step
                       AND state = 'queued' AND attempt = 0 AND waiting_since IS NOT NULL
                     ORDER BY operation_id FOR UPDATE) w
             WHERE s.operation_id = w.operation_id AND s.position = w.position
            RETURNING s.operation_id
            """  # noqa: S608 (constants of this module)
        ),
        values,
    )
    return [row.operation_id for row in rows]
