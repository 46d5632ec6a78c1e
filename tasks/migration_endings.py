"""How a live migration ends: its record, its figures, and the next host after a refusal."""

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from innkeeper.errors import Cancelled
from innkeeper.states import InstanceState, PowerState
from models.claims import release_claim
from models.instance import Instance
from models.operation import Migration, Operation, Step
from models.queries import view_settled
from tasks.migration_policy import policy_of
from tasks.next_host import choose_next_host
from tasks.unsettled import mark_unknown


def set_phase(session: Session, operation: Operation, **values: Any) -> None:
    """Write to the migration's row."""
    session.execute(
        update(Migration).where(Migration.operation_id == operation.id).values(**values)
    )


def succeed(session: Session, operation: Operation) -> dict[str, Any]:
    """Settle a guest that has moved, and return the operation's result with the move's figures."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    rows = session.execute(
        select(Step.name, Step.detail)
        .where(Step.operation_id == operation.id)
        .order_by(Step.position)
    )
    details = {row.name: row.detail for row in rows}
    instance.power_state = (
        PowerState.RUNNING if instance.state == InstanceState.ACTIVE else PowerState.PAUSED
    )
    if details["settle_destination"].get("is_off"):
        instance.power_state, instance.state = PowerState.SHUTDOWN, InstanceState.STOPPED
    instance.power_observed_at = func.clock_timestamp()
    moved, settled = details["migrate"], details["settle_destination"]
    stats = moved.get("stats") or settled.get("stats") or {}
    figures = {
        "total_ms": stats.get("total_ms") or moved.get("total_ms"),
        "downtime_ms": settled.get("downtime_ms"),
        "handover_ms": settled.get("handover_ms"),
        "standstill_ms": settled.get("standstill_ms"),
        "storage": details["check_source"]["storage"],
        "storage_reason": details["check_source"].get("storage_reason"),
        "handover": operation.params["policy"]["handover"],
        "tls": bool(details["check_source"].get("tls")),
        "src": operation.src_host,
        "dst": operation.dst_host,
        "forecast": session.get_one(Migration, operation.id).forecast,
    }
    set_phase(
        session,
        operation,
        phase="done",
        outcome="completed",
        total_ms=figures["total_ms"],
        downtime_ms=figures["downtime_ms"],
        stats=stats,
    )
    return {**view_settled(session, instance, operation), **figures}


def fail(session: Session, operation: Operation) -> None:
    """Give the destination's claim back after everything was undone."""
    if operation.dst_host is not None and operation.instance_id is not None:
        release_claim(session, host=operation.dst_host, instance_id=operation.instance_id)
    code = (operation.error or {}).get("code")
    set_phase(
        session,
        operation,
        phase="undone",
        outcome="cancelled" if code == Cancelled.code else "failed",
    )


def give_up_unknown(session: Session, operation: Operation) -> None:
    """Nothing is cleaned up: the record says that it does not know, until both hosts agree."""
    mark_unknown(session, operation)
    set_phase(session, operation, phase="unknown", outcome="failed")


def choose_next_destination(session: Session, operation: Operation) -> bool:
    """Answer a destination's refusal with another one, unless the caller insisted on this one."""
    policy = policy_of(operation.params)
    dst = choose_next_host(
        session,
        operation,
        is_pinned=policy.dst is not None,
        leaves=operation.src_host,
        may_split_group=policy.may_split_group,
    )
    if dst is not None:
        set_phase(session, operation, dst_host=dst)
    session.flush()
    return dst is not None
