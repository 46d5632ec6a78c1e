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
