"""Operations and their ledger of steps; the steps table is also the outbox of messages.

operation:  queued → running → succeeded
               │         └──→ undoing → failed | cancelled
               └────────────→ failed | cancelled        (nothing was done)

step:       queued → running → done                     (running → queued: tried again)
                        └────→ failed
            undo: done | failed → undo → undoing → undone;  queued → skipped

An operation that has ended may owe steps to a host that was away: see models/debts.py.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from innkeeper.states import OperationState, StepState
from models.base import Base, Timestamps, enum_by_value

_LIVE = text("state IN ('queued', 'running', 'undoing')")


class Operation(Timestamps, Base):
    """One request; its id is the Celery task id that the caller holds."""

    __tablename__ = "operations"
    __table_args__ = (
        Index("uq_operations_live_instance", "instance_id", unique=True, postgresql_where=_LIVE),
        Index("ix_operations_live", "state", postgresql_where=_LIVE),
        Index("ix_operations_created_at", "created_at"),
        Index(
            "ix_operations_owing", "instance_id", postgresql_where=text("owes_since IS NOT NULL")
        ),
        CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="final_has_end",
        ),
        CheckConstraint(
            "(state IN ('failed', 'cancelled')) <= (error IS NOT NULL)", name="failure_has_error"
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[OperationState] = mapped_column(
        enum_by_value(OperationState, "state"), server_default=OperationState.QUEUED.value
    )
    instance_id: Mapped[UUID | None] = mapped_column(ForeignKey("instances.id"), index=True)
    src_host: Mapped[str | None] = mapped_column(ForeignKey("hosts.name"))
    dst_host: Mapped[str | None] = mapped_column(ForeignKey("hosts.name"))
    params: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    request_digest: Mapped[str]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    requested_by: Mapped[str | None]
    reason: Mapped[str | None]
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("operations.id"), index=True)
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    state_before: Mapped[str | None]
    is_committed: Mapped[bool] = mapped_column(server_default=text("false"))
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    cancel_requested_by: Mapped[str | None]
    force_complete_by: Mapped[str | None]
    deadline_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    refusals: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    outcome_published_at: Mapped[datetime | None]
    owes_since: Mapped[datetime | None]


class OperationAlias(Base):
    """Another Celery task id that waits for the same operation: a repeated idempotency key."""

    __tablename__ = "operation_aliases"

    task_id: Mapped[UUID] = mapped_column(primary_key=True)
    operation_id: Mapped[UUID] = mapped_column(ForeignKey("operations.id"), index=True)


class Step(Base):
    """One step of an operation: who does it, how often it was begun, what it made."""

    __tablename__ = "steps"
    __table_args__ = (
        Index(
            "ix_steps_unfinished",
            "state",
            "not_before",
            postgresql_where=text("state IN ('queued', 'running', 'undo', 'undoing')"),
        ),
        Index(
            "ix_steps_owner",
            "owner",
            postgresql_where=text("state IN ('running', 'undoing')"),
        ),
        CheckConstraint(
            "(state IN ('running', 'undoing')) = "
            "(owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name="running_has_lease",
        ),
    )

    operation_id: Mapped[UUID] = mapped_column(ForeignKey("operations.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    host: Mapped[str | None] = mapped_column(ForeignKey("hosts.name"))
    state: Mapped[StepState] = mapped_column(
        enum_by_value(StepState, "state"), server_default=StepState.QUEUED.value
    )
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=text("now()"))
    waiting_for: Mapped[str | None]
    waiting_since: Mapped[datetime | None]
    rung_at: Mapped[datetime | None]
    rings: Mapped[int] = mapped_column(server_default=text("0"))
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    undo: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    error: Mapped[dict[str, Any] | None]
    log: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))


class Migration(Timestamps, Base):
    """A live migration's facts, as operators ask for them."""

    __tablename__ = "migrations"
    __table_args__ = (
        CheckConstraint("outcome IN ('completed', 'failed', 'cancelled')", name="outcome"),
    )

    operation_id: Mapped[UUID] = mapped_column(ForeignKey("operations.id"), primary_key=True)
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id"), index=True)
    src_host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    dst_host: Mapped[str] = mapped_column(ForeignKey("hosts.name"))
    storage: Mapped[str | None]
    handover: Mapped[str | None]
    phase: Mapped[str] = mapped_column(server_default=text("'accepted'"))
    outcome: Mapped[str | None]
    total_ms: Mapped[float | None]
    downtime_ms: Mapped[float | None]
    forecast: Mapped[dict[str, Any] | None]
    decisions: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    applied: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    stats: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
