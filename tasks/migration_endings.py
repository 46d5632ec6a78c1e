"""How a live migration ends: its record, its figures, and the next host after a refusal."""

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from innkeeper.errors import Cancelled, NoHostFits, PrecheckFailed
from innkeeper.states import InstanceState, PowerState
from models.claims import release_claim
from models.instance import Instance
from models.operation import Migration, Operation, Step
from models.queries import view_settled
from tasks.choosing import choose_and_claim
from tasks.spawn import HOST_FAULTS, MOST_HOSTS_TRIED, demand_of
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
    figures = {
        "total_ms": moved.get("total_ms"),
        "downtime_ms": settled.get("downtime_ms"),
        "handover_ms": settled.get("handover_ms"),
        "storage": details["check_source"]["storage"],
        "handover": operation.params["policy"]["handover"],
        "src": operation.src_host,
        "dst": operation.dst_host,
    }
    set_phase(
        session,
        operation,
        phase="done",
        outcome="completed",
        total_ms=figures["total_ms"],
        downtime_ms=figures["downtime_ms"],
        stats=moved.get("stats") or {},
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


TRY_ELSEWHERE = HOST_FAULTS | {PrecheckFailed.code}


def choose_next_host(session: Session, operation: Operation) -> bool:
    """Answer a destination's refusal with another one, unless the caller insisted on this one."""
    error = operation.error or {}
    if error.get("code") not in TRY_ELSEWHERE or operation.params["policy"].get("dst"):
        return False
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    refusals = [
        *operation.refusals,
        {"host": operation.dst_host, "code": error["code"], "message": error.get("message", "")},
    ]
    tried = {r["host"] for r in refusals if r["code"] in TRY_ELSEWHERE}
    if len(tried) >= MOST_HOSTS_TRIED:
        return False
    release_claim(session, host=str(operation.dst_host), instance_id=instance.id)
    try:
        dst, _ = choose_and_claim(
            session,
            instance_id=instance.id,
            operation_id=operation.id,
            demand=demand_of(instance),
            wanted=None,
            ignored=frozenset({*tried, str(operation.src_host)}),
            what=f"instance {instance.name}",
        )
    except NoHostFits:
        return False
    operation.refusals, operation.dst_host = refusals, dst
    set_phase(session, operation, dst_host=dst)
    session.flush()
    return True
