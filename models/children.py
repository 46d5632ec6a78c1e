"""Operations of operations: a whole, as a drain, and its parts, one per guest.

A part is an operation like any other: it has its steps, its undo, its end. The whole is told by
``operations.parent_id``. A part's id follows from the whole's and the guest's, so that a whole
whose worker died asks for the same parts again, and finds them.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from innkeeper.states import OperationState
from models.instance import Instance
from models.operation import Operation


@dataclass(frozen=True, slots=True)
class Child:
    """A part of a whole, and how far it is."""

    operation_id: UUID
    kind: str
    state: OperationState
    instance_id: UUID | None
    name: str | None
    dst_host: str | None
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None


def child_id(parent_id: UUID, instance_id: UUID, attempt: int = 0) -> UUID:
    """Return the id of a guest's part of a whole.

    Args:
        parent_id: the whole.
        instance_id: the guest.
        attempt: counts up where the whole asks for a guest again after a failure.
    """
    return uuid5(parent_id, f"{instance_id}" if attempt == 0 else f"{instance_id}/{attempt}")


def list_children(session: Session, parent_id: UUID) -> list[Child]:
    """Return the parts of a whole, in the order in which they were asked for."""
    rows = session.execute(
        select(
            Operation.id,
            Operation.kind,
            Operation.state,
            Operation.instance_id,
            Instance.name,
            Operation.dst_host,
            Operation.progress,
            Operation.result,
            Operation.error,
        )
        .outerjoin(Instance, Instance.id == Operation.instance_id)
        .where(Operation.parent_id == parent_id)
        .order_by(Operation.created_at, Operation.id)
    )
    return [Child(*row) for row in rows]


def cancel_children(session: Session, parent_id: UUID, *, requested_by: str | None) -> int:
    """Ask every part that has not ended, and can still be taken back, to stop.

    Returns:
        How many were asked.
    """
    result = session.execute(
        text(
            """
            UPDATE operations
               SET cancel_requested = true, cancel_requested_by = :by,
                   updated_at = clock_timestamp()
             WHERE parent_id = :parent AND state IN ('queued', 'running', 'undoing')
               AND NOT is_committed AND NOT cancel_requested
            """
        ),
        {"parent": parent_id, "by": requested_by},
    )
    return int(result.rowcount)  # type: ignore[attr-defined]


def wake_whole(session: Session, child_id: UUID) -> list[UUID]:
    """Have the whole of a part that has ended look again now, if it waits.

    Returns:
        The whole, marked as rung; nothing when it is at work, and will see for itself.
    """
    rows = session.execute(
        text(
            """
            UPDATE steps s
               SET not_before = clock_timestamp(), rung_at = clock_timestamp(), rings = 1
              FROM operations c
             WHERE c.id = :child AND s.operation_id = c.parent_id
               AND s.state IN ('queued', 'undo') AND s.waiting_for IS NOT NULL
            RETURNING s.operation_id
            """
        ),
        {"child": child_id},
    )
    return [row.operation_id for row in rows]


def count_live_children(session: Session, parent_id: UUID) -> int:
    """Count the parts of a whole that have not ended."""
    return int(
        session.execute(
            text(
                "SELECT count(*) FROM operations WHERE parent_id = :parent "
                "AND state IN ('queued', 'running', 'undoing')"
            ),
            {"parent": parent_id},
        ).scalar_one()
    )
