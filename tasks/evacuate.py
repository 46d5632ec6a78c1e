"""Evacuation: a dead host is fenced, what was under way there is ended, its guests run elsewhere.

An operation of operations: every guest is one of its own, begun a few at a time. What cannot be
moved is left with its reason, and stops nobody else.
"""

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.errors import InnkeeperError, Interrupted, LeaseLost
from models.children import Child, cancel_children, count_live_children, list_children
from models.fencing import Resident, list_residents
from models.host import Host
from models.operation import Operation, Step
from tasks.context import StepContext
from tasks.evacuation_choice import begin_move, find_refusal, identify_pools
from tasks.fenced_operations import settle_operations
from tasks.fencing import confirm_silence, fence_host
from tasks.workflow import Done, On, Parked, StepSpec, Workflow

LOOK_AGAIN_S = 5.0


def move_guests(context: StepContext) -> Done:
    """Have every guest moved that can be, a few at a time, and tell of the others why not.

    Queue: control; milliseconds a time, until the slowest of them has ended.
    Idempotency: a guest's move has an id that follows from this operation; it is begun once.
    Undo: none; cancelling asks the moves that have not begun to stop.
    On crash: goes on with the moves that are there.
    Retries: none; each move has its own.
    """
    operation = context.operation
    host = str(operation.src_host)
    fencing_id = UUID(context.details["fence_host"]["fencing_id"])
    at_once = int(operation.params["spec"].get("concurrency", 4))
    left: dict[str, dict[str, Any]] = dict(context.step.undo.get("left") or {})
    children, waiting, pools = context.database.run(partial(_look, parent=operation, host=host))
    live = sum(not child.state.is_final for child in children)
    begun = 0
    for guest in waiting:
        if str(guest.instance_id) in left:
            continue
        if live + begun >= at_once:
            break
        try:
            _begin(context, guest, pools=pools, fencing_id=fencing_id)
            begun += 1
        except (Interrupted, LeaseLost):
            raise
        except InnkeeperError as error:
            context.note(f"{guest.name} is left: {error.message}")
            left[str(guest.instance_id)] = _tell_left(guest, error)
            context.intend(left=left)
    context.midway()
    if not live and not begun:
        return Done({"left": list(left.values())})
    to_begin = sum(str(guest.instance_id) not in left for guest in waiting) - begun
    _show(context, children, waiting=to_begin + begun, left=len(left))
    context.checkpoint()
    raise Parked(
        f"{live + begun} guests on their way, and {to_begin} after them",
        after_s=LOOK_AGAIN_S,
        still=lambda session: count_live_children(session, operation.id) == live + begun,
    )


def _look(
    session: Session, *, parent: Operation, host: str
) -> tuple[list[Child], list[Resident], dict[str, Any]]:
    """Return the moves, the guests that have none yet, and what is known of the host's pools."""
    children = list_children(session, parent.id)
    begun = {child.instance_id for child in children}
    waiting = [g for g in list_residents(session, host) if g.instance_id not in begun]
    pools = session.scalars(select(Host.pools).where(Host.name == host)).one()
    return children, waiting, pools


def _begin(
    context: StepContext, guest: Resident, *, pools: dict[str, Any], fencing_id: UUID
) -> None:
    operation = context.operation
    refusal = find_refusal(guest, host=str(operation.src_host), pools=pools)
    if refusal is not None:
        raise refusal
    pool_ids = identify_pools(guest, pools)
    child = context.database.run(
        lambda session: begin_move(
            session, operation, guest, fencing_id=fencing_id, pool_ids=pool_ids
        )
    )
    context.ring(child)


def _show(context: StepContext, children: list[Child], *, waiting: int, left: int) -> None:
    ended = sum(child.state.is_final for child in children)
    total = len(children) + waiting + left
    context.progress(
        (ended + left) / max(total, 1),
        f"{ended} of {total} guests done, {len(children) - ended} under way, {left} left behind",
        guests=total,
        done=ended,
        left=left,
    )


def _tell_left(guest: Resident, error: InnkeeperError) -> dict[str, Any]:
    return {
        "name": guest.name,
        "instance_id": str(guest.instance_id),
        "outcome": "left",
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
    }


def _tell_moved(child: Child) -> dict[str, Any]:
    told = {
        "name": child.name,
        "instance_id": str(child.instance_id),
        "operation_id": str(child.operation_id),
        "dst": child.dst_host,
    }
    if child.error is None:
        return {**told, "outcome": "moved", "state": (child.result or {}).get("state")}
    return {
        **told,
        "outcome": "failed",
        "code": child.error.get("code"),
        "message": child.error.get("message"),
        "hint": child.error.get("hint"),
    }


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    """Return what became of each guest; that one has failed fails nobody else."""
    steps = session.execute(
        select(Step.name, Step.detail).where(Step.operation_id == operation.id)
    ).all()
    details = {step.name: step.detail for step in steps}
    guests = [
        *(_tell_moved(child) for child in list_children(session, operation.id)),
        *details["move_guests"]["left"],
    ]
    outcomes = [guest["outcome"] for guest in guests]
    return {
        "operation_id": str(operation.id),
        "host": operation.src_host,
        "proof": details["fence_host"]["proof"],
        "guests": sorted(guests, key=lambda guest: str(guest["name"])),
        **{outcome: outcomes.count(outcome) for outcome in ("moved", "failed", "left")},
    }


def _fail(session: Session, operation: Operation) -> None:
    """Stop the moves that can be stopped; the host stays closed."""
    cancel_children(session, operation.id, requested_by=operation.cancel_requested_by)


EVACUATE = Workflow(
    kind="evacuate",
    steps=(
        StepSpec("fence_host", On.CONTROL, fence_host, is_harmless=True),
        StepSpec("confirm_silence", On.CONTROL, confirm_silence, is_harmless=True),
        StepSpec("settle_operations", On.CONTROL, settle_operations, is_harmless=True),
        StepSpec("move_guests", On.CONTROL, move_guests, is_harmless=True),
    ),
    on_success=_succeed,
    on_failure=_fail,
)
