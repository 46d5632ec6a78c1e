"""What was under way on a host that was fenced: ended, undone elsewhere, or led on without it.

A fenced host does nothing any more, so that its part of an operation is decided here, once for
every step that waits for it:

    migration away from it    memory may have crossed       the destination looks, and decides
                              it has not                    undone on the destination
                              committed                     goes on, the source's clean-up is owed
    migration to it           not committed                 undone on the source
                              the source has let go         the guest is the dead host's
    spawn                                                   undone as far as can be, the rest owed
    delete                    past its point of no return   left alone
    everything else                                         ended, the guest keeps its state
"""

import time
from functools import partial
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from innkeeper.errors import HostFenced
from innkeeper.states import Effect, OperationState, PowerState, StepState
from models import operations
from models.claims import move_placement
from models.drains import find_live_drain
from models.instance import Instance
from models.operation import Operation, Step
from tasks import endings
from tasks.context import StepContext
from tasks.migration_endings import set_phase
from tasks.reconcile import Look
from tasks.workflow import Done, Workflow, Workflows

# Libvirt on a destination gives up a source that has fallen silent after 30 s.
PATIENCE_S = 90.0
LOOK_AGAIN_S = 0.5
LED_ON_S = 180.0
UNFINISHED = (StepState.QUEUED, StepState.RUNNING, StepState.UNDO, StepState.UNDOING)
BY_FENCING = "is_fenced"


def settle_operations(context: StepContext) -> Done:
    """End what was under way with a part on the fenced host, so that its guests are free.

    Queue: control; milliseconds, or as long as other hosts take to undo their parts.
    Idempotency: looks at what is left; what has ended is left alone.
    Undo: none.
    On crash: goes on with what is left.
    Retries: none; what does not end within 90 s is left, and its guest with it.
    """
    # Not at the head: the catalogue knows this module by its workflow.
    from tasks.catalogue import WORKFLOWS

    host = str(context.operation.src_host)
    context.database.run(
        partial(_stop_drain, host=host, requested_by=context.operation.requested_by)
    )
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        left = context.database.run(partial(_list_stuck, host=host))
        context.midway()
        for operation_id in left:
            if context.database.run(
                partial(_settle, workflows=WORKFLOWS, operation_id=operation_id, host=host)
            ):
                context.ring(operation_id)
        if not left or time.monotonic() > give_up_at:
            return Done({"unsettled": [str(operation_id) for operation_id in left]})
        context.progress(0.5, f"ending what was under way on {host}: {len(left)}")
        context.checkpoint()
        time.sleep(LOOK_AGAIN_S)


def _stop_drain(session: Session, *, host: str, requested_by: str | None) -> None:
    """Have nobody send guests away any more from a host that has none that could be sent."""
    drain = find_live_drain(session, host)
    if drain is not None:
        operations.request_cancel(session, drain, requested_by=requested_by)


def _list_stuck(session: Session, *, host: str) -> list[UUID]:
    """Return the live operations on guests that wait for a host, and would wait for ever."""
    rows = session.execute(
        text(
            """
            SELECT o.id FROM operations o
             WHERE o.state IN ('queued', 'running', 'undoing') AND o.instance_id IS NOT NULL
               AND NOT (o.kind = 'delete' AND o.is_committed)
               AND EXISTS (SELECT 1 FROM steps s
                            WHERE s.operation_id = o.id AND s.host = :host
                              AND s.state IN ('queued', 'running', 'undo', 'undoing'))
             ORDER BY o.created_at
            """
        ),
        {"host": host},
    )
    return [row.id for row in rows]


def _settle(session: Session, *, workflows: Workflows, operation_id: UUID, host: str) -> bool:
    """Do what can be done now for one operation; True when there is a bell to ring."""
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    steps = session.scalars(
        select(Step)
        .where(Step.operation_id == operation_id, Step.state.in_(UNFINISHED))
        .order_by(Step.position)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    here = [step for step in steps if step.host == host]
    if operation.state.is_final or not here:
        return False
    workflow = workflows[operation.kind]
    error = HostFenced(
        f"Host {host} was fenced while it had a part in the {operation.kind}.",
        {"host": host, "step": here[0].name},
    )
    if operation.kind == "live_migrate" and operation.src_host == host:
        return _settle_departure(session, workflow, operation, list(steps), here, error)
    if operation.kind == "live_migrate" and operation.is_committed:
        _end_on_dead_host(session, operation, list(steps), error)
        return False
    return _turn_back(session, workflow, operation, list(steps), here, error)


def _settle_departure(
    session: Session,
    workflow: Workflow,
    operation: Operation,
    steps: list[Step],
    here: list[Step],
    error: HostFenced,
) -> bool:
    """A migration's source is dead: what has arrived on the destination decides."""
    if operation.is_committed:
        if len(here) < len(steps):
            # The destination is about to let the guest run.
            return False
        endings.end_early(session, workflow, operation.id, error)
        return False
    step = next((each for each in here if each.name == "migrate"), None)
    if step is None or (step.state == StepState.QUEUED and step.attempt == 0):
        return _turn_back(session, workflow, operation, steps, here, error)
    is_undo = step.state in (StepState.UNDO, StepState.UNDOING)
    if is_undo and step.detail.get(BY_FENCING):
        # The destination has looked already, and has nothing.
        _take(step, StepState.UNDONE)
        session.flush()
        return endings.finish_undo(session, workflow, operation.id) is endings.Turn.RING
    _take(step, StepState.DONE)
    step.detail = {
        **step.detail,
        "src": Look(PowerState.SHUTDOWN).to_wire(),
        "error": error.to_wire(),
        "adopted": True,
        BY_FENCING: True,
    }
    # What has arrived may be all that is left of the guest: neither a cancel nor the deadline
    # must keep the destination from looking.
    operation.cancel_requested = False
    operation.deadline_at = func.greatest(
        operation.deadline_at,
        func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, LED_ON_S),
    )
    session.flush()
    if is_undo:
        operations.turn_forward(session, operation.id, step.position)
        return True
    endings.advance(session, workflow, operation.id, step.position)
    return True


def _turn_back(
    session: Session,
    workflow: Workflow,
    operation: Operation,
    steps: list[Step],
    here: list[Step],
    error: HostFenced,
) -> bool:
    """Have the hosts that live undo their parts, and end the operation; the rest is owed."""
    operation.error = operation.error or error.to_wire()
    if all(step in here and step.state == StepState.UNDO for step in steps):
        endings.end_owing(session, workflow, operation.id)
        return False
    for step in here:
        if step.state == StepState.RUNNING:
            _take(step, StepState.FAILED)
            step.error = error.to_wire()
        elif step.state == StepState.UNDOING:
            _take(step, StepState.UNDO)
    session.flush()
    if operation.state == OperationState.UNDOING:
        return True
    if any(step.state == StepState.RUNNING for step in steps):
        # A host that lives is at it: it is to stop, and reads so.
        operation.cancel_requested = True
        session.flush()
        return False
    turn = endings.turn_back(session, workflow, operation.id, error)
    return turn is endings.Turn.RING


def _end_on_dead_host(
    session: Session, operation: Operation, steps: list[Step], error: HostFenced
) -> None:
    """A migration's source has let go and its destination is dead: the guest is the latter's.

    The source's files are not removed: they may be all that is left.
    """
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    src, dst = str(operation.src_host), str(operation.dst_host)
    if instance.host != dst:
        move_placement(
            session, instance_id=instance.id, src=src, dst=dst, domain_epoch=operation.epoch
        )
    for step in steps:
        _take(step, StepState.FAILED if step.attempt else StepState.SKIPPED)
    set_phase(session, operation, phase="unknown", outcome="failed")
    session.flush()
    told = error.with_details(effect=Effect.DONE).to_wire()
    operations.end_operation(session, operation.id, OperationState.FAILED, error=told)


def _take(step: Step, state: StepState) -> None:
    """Take a step from a worker that is not heard any more; its late answer matches no row."""
    step.state = state
    step.owner = None
    step.lease_expires_at = None
    step.rung_at = None
    step.attempt += 1
    step.finished_at = func.clock_timestamp()
    step.not_before = func.clock_timestamp()
