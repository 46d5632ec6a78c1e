"""Requests that were refused, so that a late copy of one is refused as well."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from innkeeper.errors import InnkeeperError, from_wire
from models.base import Base

# Longer than any message stays on its way.
KEPT_S = 3600.0


class Refusal(Base):
    """A refusal that a caller has been told.

    ``call`` tells a new call with the same idempotency key, which may succeed, from another copy
    of the message that was refused, which must not.
    """

    __tablename__ = "refusals"

    task_id: Mapped[UUID] = mapped_column(primary_key=True)
    call: Mapped[str] = mapped_column(primary_key=True)
    error: Mapped[dict[str, Any]]
    refused_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


_FIND = text("SELECT error FROM refusals WHERE task_id = :task_id AND call = :call")


def find_refusal(session: Session, task_id: UUID, call: str) -> InnkeeperError | None:
    """Find what this very call was told before; None when it was not refused."""
    wire = session.scalar(_FIND, {"task_id": task_id, "call": call})
    return None if wire is None else from_wire(wire)


def record_refusal(session: Session, task_id: UUID, call: str, error: InnkeeperError) -> None:
    """Write down what a call is told; the first word stands."""
    session.execute(
        insert(Refusal)
        .values(task_id=task_id, call=call, error=error.to_wire())
        .on_conflict_do_nothing()
    )


def prune_refusals(session: Session) -> None:
    """Forget refusals of which no copy can be on its way any more."""
    kept = func.make_interval(0, 0, 0, 0, 0, 0, KEPT_S)
    session.execute(delete(Refusal).where(Refusal.refused_at < func.now() - kept))
