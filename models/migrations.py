"""What is written into a migration's row while it runs."""

import json
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from models.operation import Migration

# Less tells nothing about a link: QEMU sends it in one burst.
TELLING_BYTES = 64 * 2**20


def set_migration(session: Session, operation_id: UUID, **values: Any) -> None:
    """Write columns of a migration's row."""
    session.execute(
        update(Migration).where(Migration.operation_id == operation_id).values(**values)
    )


POST_COPY = "post_copy"


def is_in_post_copy(session: Session, operation_id: UUID) -> bool:
    """Tell whether an operation is a migration past its point of no return."""
    phase = select(Migration.phase).where(Migration.operation_id == operation_id)
    return session.scalar(phase) == POST_COPY


def enter_post_copy(session: Session, operation_id: UUID, *, takes_s: float) -> bool:
    """Write that a migration is about to go beyond return, unless a cancel came first.

    Args:
        session: an open transaction.
        operation_id: the operation; its row is locked, as the cancel's transaction does.
        takes_s: the time that it needs from now at least; its deadline moves so far.
    """
    is_cancelled = session.execute(
        text("SELECT cancel_requested FROM operations WHERE id = :id FOR UPDATE"),
        {"id": operation_id},
    ).scalar_one()
    if is_cancelled:
        return False
    set_migration(session, operation_id, phase=POST_COPY)
    extend_deadline(session, operation_id, takes_s=takes_s)
    return True


def extend_deadline(session: Session, operation_id: UUID, *, takes_s: float) -> None:
    """See to it that an operation has so many seconds from now."""
    session.execute(
        text(
            "UPDATE operations SET deadline_at = GREATEST(deadline_at, "
            "clock_timestamp() + make_interval(secs => :s)) WHERE id = :id"
        ),
        {"id": operation_id, "s": takes_s},
    )


def find_applied(session: Session, operation_id: UUID) -> dict[str, Any]:
    """Find what the hypervisor was last told of a migration's policy; empty for nothing yet."""
    return (
        session.scalar(select(Migration.applied).where(Migration.operation_id == operation_id))
        or {}
    )


def append_decision(session: Session, operation_id: UUID, decision: dict[str, Any]) -> None:
    """Add what was decided about a migration that runs, with the time."""
    session.execute(
        text(
            "UPDATE migrations SET decisions = decisions || jsonb_build_array("
            "CAST(:decision AS jsonb) || jsonb_build_object('at', clock_timestamp())) "
            "WHERE operation_id = :id"
        ),
        {"id": operation_id, "decision": json.dumps(decision)},
    )


def find_link_bytes_s(session: Session, *, src: str, dst: str) -> float | None:
    """Find what the link between two hosts carried the last time that tells; None for never."""
    moved = Migration.stats["memory_processed_bytes"].as_integer()
    rate = Migration.stats["memory_bytes_s"].as_integer()
    found = session.scalar(
        select(func.max(rate)).where(
            Migration.src_host == src,
            Migration.dst_host == dst,
            Migration.outcome == "completed",
            moved >= TELLING_BYTES,
            Migration.created_at > func.now() - func.make_interval(0, 0, 0, 30),
        )
    )
    return float(found) if found else None
