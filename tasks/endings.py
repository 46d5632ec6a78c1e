"""How operations advance, turn back and end, inside the caller's transaction."""

from enum import Enum, auto
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from innkeeper.errors import (
    AttemptsExhausted,
    Cancelled,
    DeadlineExceeded,
    InnkeeperError,
    InternalError,
)
from innkeeper.states import Effect, InstanceState, OperationState, StepState
from models import debts, ledger, operations
from models.instance import Instance
from models.operation import Operation, Step
from models.queries import record_event
from models.remaining import Outcome
from tasks.workflow import RollForward, Workflow


class Turn(Enum):
    """What the caller does after its commit."""

    WAIT = auto()
    RING = auto()
    ENDED = auto()


def advance(session: Session, workflow: Workflow, operation_id: UUID, position: int) -> bool:
    """Go on after a step that is passed over.

    Returns:
        True when it was the last one and the operation has succeeded.
    """
    return not ledger.ring_step(session, operation_id, position + 1) and end_if_done(
        session, workflow, operation_id
    )


def end_if_done(session: Session, workflow: Workflow, operation_id: UUID) -> bool:
    """End an operation of which nothing is left to be done.

    Returns:
        True when the operation has succeeded, or has made up for all that it owed.
    """
    if operations.has_unfinished(session, operation_id):
        return False
    end_done(session, workflow, operation_id)
    return True


def end_done(session: Session, workflow: Workflow, operation_id: UUID) -> Outcome | None:
    """End an operation whose steps are all done, or close its books when it has ended already.

    Returns:
        Its outcome; None when it had ended before.
    """
    operation = session.get_one(Operation, operation_id, populate_existing=True)
    if operation.state.is_final:
        _settle(session, workflow, operation, went_forward=True)
        return None
    result = workflow.on_success(session, operation)
    session.flush()
    return operations.end_operation(session, operation_id, OperationState.SUCCEEDED, result=result)


def turn_back(
    session: Session, workflow: Workflow, operation_id: UUID, error: InnkeeperError
) -> Turn:
    """Begin the undo of an operation, or end it when there is nothing to undo."""
    pending = operations.turn_back(
        session,
        operation_id,
        error=error.to_wire(),
        undoable=workflow.undoable,
        intending=workflow.intending,
    )
    return Turn.RING if pending else finish_undo(session, workflow, operation_id)


def finish_undo(session: Session, workflow: Workflow, operation_id: UUID) -> Turn:
    """End an operation once everything is undone; a workflow may plan anew instead."""
    if operations.has_unfinished(session, operation_id):
        return Turn.RING
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    if operation.state.is_final:
        _settle(session, workflow, operation, went_forward=False)
        return Turn.ENDED
    if _replan(session, workflow, operation):
        return Turn.RING
    error = _with_effect(operation.error, _effect(session, workflow, operation))
    workflow.on_failure(session, operation)
    return _end_in_failure(session, operation, error)


def _end_in_failure(session: Session, operation: Operation, error: dict[str, Any]) -> Turn:
    is_cancel = error.get("code") == Cancelled.code
    state = OperationState.CANCELLED if is_cancel else OperationState.FAILED
    session.flush()
    operations.end_operation(session, operation.id, state, error=error)
    return Turn.ENDED


def _with_effect(error: dict[str, Any] | None, effect: Effect) -> dict[str, Any]:
    """Return an error's wire form that tells where the operation has left the guest."""
    wire = dict(error or {})
    details = {**(wire.get("details") or {}), "effect": effect.value}
    return {**wire, "effect": effect.value, "details": details}


def _replan(session: Session, workflow: Workflow, operation: Operation) -> bool:
    """Ask the workflow for another way; True when the operation goes on with fresh steps."""
    if (
        workflow.replan is None
        or operation.cancel_requested
        or operations.is_past_deadline(session, operation.id)
    ):
        return False
    if not workflow.replan(session, operation):
        return False
    spec = session.scalar(select(Instance.spec).where(Instance.id == operation.instance_id))
    fresh = workflow.plan(src=operation.src_host, dst=operation.dst_host, spec=spec)
    last = session.scalar(select(func.max(Step.position)).where(Step.operation_id == operation.id))
    operations.append_steps(session, operation.id, fresh, first_position=int(last or 0) + 1)
    session.execute(
        update(Operation)
        .where(Operation.id == operation.id)
        .values(state=OperationState.RUNNING, error=None)
    )
    return True


UNSURE = frozenset({InternalError.code, AttemptsExhausted.code})


def _effect(session: Session, workflow: Workflow, operation: Operation) -> Effect:
    """Read from the ledger where the failed operation left things."""
    if operation.is_committed:
        # It has failed after its point of no return: only the step itself can tell.
        said = ((operation.error or {}).get("details") or {}).get("effect")
        return Effect(said) if said else Effect.UNKNOWN
    steps = session.execute(
        select(Step.name, Step.state, Step.failures).where(Step.operation_id == operation.id)
    ).all()
    if any(step.state == StepState.UNDONE for step in steps):
        return Effect.ROLLED_BACK
    error = operation.error or {}
    # A step that the operating system has stopped may have done a part of its work.
    is_unsure = error.get("code") in UNSURE or "errno" in (error.get("details") or {})
    for step in steps:
        was_cut_short = step.state == StepState.SKIPPED and step.failures > 0
        has_failed = step.state == StepState.FAILED and is_unsure
        spec = workflow.get_step(step.name)
        # One that writes its intents first, and was not undone, had not come to any.
        if (was_cut_short or has_failed) and not (spec.is_harmless or spec.intends):
            return Effect.UNKNOWN
    return Effect.NOT_STARTED


def roll_forward(session: Session, operation_id: UUID, position: int, turn: RollForward) -> Turn:
    """Turn an operation that was going back forward again, from a step that is done after all."""
    operations.turn_forward(session, operation_id, position)
    turn.commit(session)
    return Turn.RING


def end_unknown(
    session: Session, workflow: Workflow, operation_id: UUID, error: InnkeeperError
) -> Turn:
    """End an operation whose effect nobody can tell; nothing is undone.

    The steps that would tell stay in the ledger as owed, and are tried on.
    """
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    if operation.state.is_final:
        return Turn.WAIT
    workflow.on_unknown(session, operation)
    debts.owe(session, operation_id)
    return _end_in_failure(session, operation, _with_effect(error.to_wire(), Effect.UNKNOWN))


def end_overdue(session: Session, workflow: Workflow, operation_id: UUID, limit_s: float) -> Turn:
    """End an operation that its deadline has not ended: a host that did a part of it is away.

    Args:
        session: an open transaction.
        workflow: the operation's.
        operation_id: the operation.
        limit_s: the time it had.
    """
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    if operation.state.is_final:
        return Turn.WAIT
    late = stray_error(
        "deadline", kind=operation.kind, cancelled_by=None, limit_s=limit_s
    ).with_details(**debts.find_current_step(session, operation_id))
    if operation.is_committed:
        debts.release_running(session, operation_id)
        return end_early(session, workflow, operation_id, late)
    debts.turn_all_back(session, operation_id, workflow.undoable)
    operation.state = OperationState.UNDOING
    operation.error = operation.error or late.to_wire()
    session.flush()
    return end_owing(session, workflow, operation_id)


def end_early(
    session: Session, workflow: Workflow, operation_id: UUID, error: InnkeeperError
) -> Turn:
    """End an operation that has no way back before all its steps are done; the rest is owed."""
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    if operation.state.is_final:
        return Turn.WAIT
    owed = debts.list_unfinished(session, operation_id)
    if not all(workflow.get_step(name).best_effort for name in owed):
        return end_unknown(session, workflow, operation_id, error)
    result = workflow.on_success(session, operation)
    debts.owe(session, operation.id)
    session.flush()
    operations.end_operation(session, operation.id, OperationState.SUCCEEDED, result=result)
    return Turn.ENDED


def end_owing(session: Session, workflow: Workflow, operation_id: UUID) -> Turn:
    """End an operation whose way back cannot be finished now; what is left of it stays owed."""
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    owed = debts.list_unfinished(session, operation_id)
    if not owed:
        return finish_undo(session, workflow, operation_id)
    if operation.state.is_final:
        return Turn.WAIT
    # What only clears away leaves no doubt about the guest itself.
    is_known = all(workflow.get_step(name).cleans_up_only for name in owed)
    if is_known:
        workflow.on_failure(session, operation)
    else:
        workflow.on_unknown(session, operation)
    debts.owe(session, operation_id)
    effect = Effect.ROLLED_BACK if is_known else Effect.UNKNOWN
    return _end_in_failure(session, operation, _with_effect(operation.error, effect))


def _settle(
    session: Session, workflow: Workflow, operation: Operation, *, went_forward: bool
) -> None:
    """Close the books on an ended operation whose last owed step is done or undone."""
    if operation.owes_since is None:
        return
    operation.owes_since = None
    instance = session.get(Instance, operation.instance_id, populate_existing=True)
    if (
        instance is not None
        and instance.state == InstanceState.UNKNOWN
        and instance.epoch == operation.epoch
    ):
        instance.state = InstanceState(str(operation.state_before))
        session.flush()
        if went_forward:
            workflow.on_success(session, operation)
        else:
            workflow.on_failure(session, operation)
    record_event(
        session,
        "operation.settled",
        instance_id=operation.instance_id,
        operation_id=operation.id,
        data={"kind": operation.kind, "went_forward": went_forward},
    )
    session.flush()


def stray_error(why: str, *, kind: str, cancelled_by: str | None, limit_s: float) -> InnkeeperError:
    """Return the error of an operation that is stopped between two steps."""
    if why == "cancelled":
        return Cancelled(f"The {kind} operation was cancelled.", {"by": cancelled_by})
    return DeadlineExceeded(
        f"The {kind} operation did not end within {limit_s:.0f} s.", {"limit_s": limit_s}
    )
