"""How operations advance, turn back and end, inside the caller's transaction."""

from enum import Enum, auto
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from innkeeper.errors import Cancelled, DeadlineExceeded, InnkeeperError
from innkeeper.states import Effect, OperationState, StepState
from models import operations
from models.operation import Operation, Step
from models.queries import record_event
from tasks.workflow import RollForward, Workflow


class Turn(Enum):
    """What the caller does after its commit."""

    WAIT = auto()
    RING = auto()
    ENDED = auto()


def advance(session: Session, workflow: Workflow, operation_id: UUID, position: int) -> bool:
    """Go on after a step that is over.

    Returns:
        True when it was the last one and the operation has succeeded.
    """
    rung = session.execute(
        text(
            "UPDATE steps SET rung_at = clock_timestamp(), rings = rings + 1 "
            "WHERE operation_id = :o AND state = 'queued' AND position = :p RETURNING position"
        ),
        {"o": operation_id, "p": position + 1},
    ).scalar()
    if rung is not None or operations.has_unfinished(session, operation_id):
        return False
    operation = session.get_one(Operation, operation_id, populate_existing=True)
    result = workflow.on_success(session, operation)
    session.flush()
    if operations.end_operation(session, operation_id, OperationState.SUCCEEDED, result=result):
        _record_end(session, operation, OperationState.SUCCEEDED, None)
    return True


def turn_back(
    session: Session, workflow: Workflow, operation_id: UUID, error: InnkeeperError
) -> Turn:
    """Begin the undo of an operation, or end it when there is nothing to undo."""
    pending = operations.turn_back(
        session, operation_id, error=error.to_wire(), undoable=workflow.undoable
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
        return Turn.ENDED
    if _replan(session, workflow, operation):
        return Turn.RING
    error = dict(operation.error or {})
    error["effect"] = _effect(session, operation_id).value
    error.setdefault("details", {})["effect"] = error["effect"]
    is_cancel = error.get("code") == Cancelled.code
    state = OperationState.CANCELLED if is_cancel else OperationState.FAILED
    workflow.on_failure(session, operation)
    session.flush()
    operations.end_operation(session, operation_id, state, error=error)
    _record_end(session, operation, state, error)
    return Turn.ENDED


def _replan(session: Session, workflow: Workflow, operation: Operation) -> bool:
    """Ask the workflow for another way; True when the operation goes on with fresh steps."""
    if (
        workflow.replan is None
        or operation.cancel_requested
        or _has_failed_undo(session, operation.id)
    ):
        return False
    fresh = workflow.replan(session, operation)
    if not fresh:
        return False
    last = session.scalar(select(func.max(Step.position)).where(Step.operation_id == operation.id))
    operations.append_steps(session, operation.id, fresh, first_position=int(last or 0) + 1)
    session.execute(
        update(Operation)
        .where(Operation.id == operation.id)
        .values(state=OperationState.RUNNING, error=None)
    )
    return True


def _has_failed_undo(session: Session, operation_id: UUID) -> bool:
    """A failed step with an undo that could not be done stays failed beside undone ones."""
    return bool(
        session.execute(
            text(
                "SELECT EXISTS (SELECT 1 FROM steps WHERE operation_id = :o "
                "AND state = 'failed' AND undo <> '{}')"
            ),
            {"o": operation_id},
        ).scalar_one()
    )


def _effect(session: Session, operation_id: UUID) -> Effect:
    """Read from the ledger where the failed operation left things."""
    if _has_failed_undo(session, operation_id):
        return Effect.UNKNOWN
    undone = session.scalar(
        select(func.count())
        .select_from(Step)
        .where(Step.operation_id == operation_id, Step.state == StepState.UNDONE)
    )
    return Effect.ROLLED_BACK if undone else Effect.NOT_STARTED


def roll_forward(session: Session, operation_id: UUID, position: int, turn: RollForward) -> Turn:
    """Turn an operation that was going back forward again, from a step that is done after all."""
    operations.turn_forward(session, operation_id, position)
    turn.commit(session)
    return Turn.RING


def end_unknown(
    session: Session, workflow: Workflow, operation_id: UUID, error: InnkeeperError
) -> Turn:
    """End an operation whose effect nobody can tell; nothing is undone."""
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    workflow.on_unknown(session, operation)
    session.flush()
    wire = error.with_details().to_wire() | {"effect": Effect.UNKNOWN.value}
    wire["details"] = {**wire["details"], "effect": Effect.UNKNOWN.value}
    operations.skip_unfinished(session, operation_id)
    operations.end_operation(session, operation_id, OperationState.FAILED, error=wire)
    _record_end(session, operation, OperationState.FAILED, wire)
    return Turn.ENDED


def stray_error(why: str, *, kind: str, cancelled_by: str | None, limit_s: float) -> InnkeeperError:
    """Return the error of an operation that is stopped between two steps."""
    if why == "cancelled":
        return Cancelled(f"The {kind} operation was cancelled.", {"by": cancelled_by})
    return DeadlineExceeded(
        f"The {kind} operation did not end within {limit_s:.0f} s.", {"limit_s": limit_s}
    )


def _record_end(
    session: Session, operation: Operation, state: OperationState, error: dict[str, Any] | None
) -> None:
    record_event(
        session,
        f"operation.{state.value}",
        instance_id=operation.instance_id,
        operation_id=operation.id,
        host=operation.dst_host,
        data={"kind": operation.kind, **({"error": error} if error else {})},
    )
