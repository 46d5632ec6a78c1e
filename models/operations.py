"""The moves of whole operations: begin, turn back, commit, end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Insert, func, insert, select, text, update
from sqlalchemy.orm import Session

from innkeeper.errors import Busy, NotFound, StateConflict
from innkeeper.states import InstanceState, OperationState, StepState
from models.instance import Instance
from models.ledger import Speaker, StepKey, assert_owned
from models.migrations import is_in_post_copy
from models.operation import Operation, OperationAlias, Step
from models.remaining import Outcome


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step to be written: its name in the workflow and the host that does it (None: control)."""

    name: str
    host: str | None


@dataclass(frozen=True, slots=True)
class NewOperation:
    """A request that has been validated."""

    id: UUID
    kind: str
    params: dict[str, Any]
    request_digest: str
    deadline_s: float
    idempotency_key: str | None = None
    requested_by: str | None = None
    reason: str | None = None
    src_host: str | None = None
    dst_host: str | None = None
    refusals: list[dict[str, Any]] = field(default_factory=list)
    parent_id: UUID | None = None


def find_instance_by_reference(session: Session, reference: str) -> Instance | None:
    """Find a guest by UUID, or by the name it has among the living."""
    try:
        return session.get(Instance, UUID(reference))
    except ValueError:
        return session.scalars(
            select(Instance).where(
                Instance.name == reference, Instance.state != InstanceState.DELETED
            )
        ).one_or_none()


def get_instance_by_reference(session: Session, reference: str) -> Instance:
    """Get a guest by UUID or living name.

    Raises:
        NotFound: when there is none.
    """
    instance = find_instance_by_reference(session, reference)
    if instance is None:
        raise NotFound(
            f"There is no instance {reference!r}.", {"what": "instance", "name": reference}
        )
    return instance


def insert_operation(session: Session, new: NewOperation, steps: Sequence[PlannedStep]) -> None:
    """Write an operation with its steps; the first step counts as rung, the caller rings next.

    The guest is written into it by ``take_instance``, so that a guest that is held by another
    operation is found to be Busy before the one-live-operation index refuses.
    """
    session.execute(operation_row(new))
    append_steps(session, new.id, steps, first_position=0)


def operation_row(new: NewOperation) -> Insert:
    """Return the statement that writes an operation without its steps."""
    return insert(Operation).values(
        id=new.id,
        kind=new.kind,
        params=new.params,
        request_digest=new.request_digest,
        idempotency_key=new.idempotency_key,
        requested_by=new.requested_by,
        reason=new.reason,
        src_host=new.src_host,
        dst_host=new.dst_host,
        refusals=new.refusals,
        parent_id=new.parent_id,
        deadline_at=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, new.deadline_s),
    )


def append_steps(
    session: Session, operation_id: UUID, steps: Sequence[PlannedStep], *, first_position: int
) -> None:
    """Write steps after those the operation has; the first of them counts as rung."""
    if not steps:
        return
    session.connection().execute(
        text(_INSERT_STEPS), _step_values(operation_id, steps, first_position=first_position)
    )


_INSERT_STEPS = """
    INSERT INTO steps (operation_id, position, name, host, rung_at, rings)
    SELECT :operation_id, s.position, s.name, s.host,
           CASE WHEN s.position = :first THEN clock_timestamp() END,
           CASE WHEN s.position = :first THEN 1 ELSE 0 END
      FROM jsonb_to_recordset(CAST(:steps AS jsonb)) AS s (position int, name text, host text)
"""


def _step_values(
    operation_id: UUID, steps: Sequence[PlannedStep], *, first_position: int
) -> dict[str, Any]:
    rows = [
        {"position": first_position + index, "name": step.name, "host": step.host}
        for index, step in enumerate(steps)
    ]
    return {"operation_id": operation_id, "first": first_position, "steps": json.dumps(rows)}


_PLACE_NEW = text(
    f"""
    WITH placed AS (
        UPDATE instances SET host = :host, updated_at = clock_timestamp() WHERE id = :instance_id
    ), chosen AS (
        UPDATE operations
           SET instance_id = :instance_id, dst_host = :host, epoch = :epoch,
               state_before = :state_before, refusals = CAST(:refusals AS jsonb),
               updated_at = clock_timestamp()
         WHERE id = :operation_id
    )
    {_INSERT_STEPS}
    """  # noqa: S608 (constants of this module)
)


def place_new_instance(
    session: Session,
    instance: Instance,
    *,
    host: str,
    refusals: list[dict[str, Any]],
    steps: Sequence[PlannedStep],
) -> None:
    """Write where a new guest is to be, and how it gets there: one statement.

    Args:
        session: the transaction that has written guest and operation, and claimed the host.
        instance: the guest; what the session knows of it is not what stands in its row afterwards.
        host: where it will be.
        refusals: why the other hosts were not taken, in wire form.
        steps: its operation's; the first counts as rung.
    """
    operation_id = instance.operation_id
    if operation_id is None:
        raise ValueError(f"no operation makes instance {instance.id}")
    session.connection().execute(
        _PLACE_NEW,
        {
            **_step_values(operation_id, steps, first_position=0),
            "host": host,
            "instance_id": instance.id,
            "epoch": instance.epoch,
            "state_before": instance.state.value,
            "refusals": json.dumps(refusals),
        },
    )


def take_instance(
    session: Session,
    instance_id: UUID,
    operation: NewOperation,
    *,
    allowed: frozenset[InstanceState],
) -> Instance:
    """Take a guest for an operation: compare-and-swap on who holds it and what state it is in.

    Raises:
        Busy: another operation holds it.
        StateConflict: it is in a state that does not allow the verb.
        NotFound: it is gone.
    """
    row = session.execute(
        update(Instance)
        .where(
            Instance.id == instance_id,
            Instance.operation_id.is_(None),
            Instance.state.in_(allowed),
        )
        .values(operation_id=operation.id, epoch=Instance.epoch + 1)
        .returning(Instance)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if row is not None:
        session.execute(
            update(Operation)
            .where(Operation.id == operation.id)
            .values(instance_id=row.id, epoch=row.epoch, state_before=row.state.value)
        )
        return row
    now = session.get(Instance, instance_id, populate_existing=True)
    if now is None or now.state == InstanceState.DELETED:
        raise NotFound("The instance is gone.", {"what": "instance", "name": str(instance_id)})
    if now.operation_id is not None:
        holder = session.get_one(Operation, now.operation_id)
        raise Busy(
            f"Instance {now.name} is held by a {holder.kind} operation that has not ended.",
            {"operation_id": str(holder.id), "verb": holder.kind},
        )
    raise StateConflict(
        f"Instance {now.name} is {now.state.value}; {operation.kind} needs "
        f"{' or '.join(sorted(allowed))}.",
        {"expected": sorted(allowed), "actual": now.state.value},
    )


def turn_back(
    session: Session,
    operation_id: UUID,
    *,
    error: dict[str, Any],
    undoable: frozenset[str],
    intending: frozenset[str] = frozenset(),
) -> bool:
    """Turn a live operation towards its undo.

    Args:
        session: an open transaction.
        operation_id: the operation.
        error: the wire form of why; it becomes the operation's error.
        undoable: names of the steps that have an undo.
        intending: those among them that made nothing unless the ledger says so.

    Returns:
        True when there is something to undo; False when the caller may end the operation now.
        Does nothing and returns True when a living worker still runs a step: that worker reads
        the reason itself and turns back.
    """
    operation = session.get_one(
        Operation, operation_id, with_for_update=True, populate_existing=True
    )
    steps = session.scalars(
        select(Step)
        .where(Step.operation_id == operation_id)
        .order_by(Step.position)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    if any(s.state in (StepState.RUNNING, StepState.UNDOING) for s in steps):
        return True
    pending = False
    for step in steps:
        if step.state == StepState.QUEUED and step.attempt == 0:
            step.state = StepState.SKIPPED
        elif step.state in (StepState.QUEUED, StepState.DONE, StepState.FAILED):
            has_made_nothing = (
                step.state != StepState.DONE and step.name in intending and not step.undo
            )
            if step.name in undoable and not has_made_nothing:
                step.state = StepState.UNDO
                step.failures = 0
                step.rung_at = None
                step.not_before = func.clock_timestamp()
                pending = True
            elif step.state == StepState.QUEUED:
                step.state = StepState.SKIPPED
    if not operation.state.is_final:
        operation.state = OperationState.UNDOING
        operation.error = operation.error or error
    session.flush()
    return pending


def turn_forward(session: Session, operation_id: UUID, position: int) -> None:
    """Make an operation that was being undone go on after a step that is done.

    Args:
        session: an open transaction.
        operation_id: the operation.
        position: the step that is done; those before it count as done again, since undo goes
            backwards and has not reached them, and those after it are yet to be done.
    """
    session.execute(
        text(
            """
            UPDATE steps
               SET state = CASE WHEN position < :position THEN 'done' ELSE 'queued' END,
                   rung_at = NULL, not_before = clock_timestamp(), failures = 0, error = NULL
             WHERE operation_id = :operation_id AND position <> :position
               AND ((position < :position AND state = 'undo')
                 OR (position > :position AND state IN ('skipped', 'failed', 'undone')))
            """
        ),
        {"operation_id": operation_id, "position": position},
    )
    session.execute(
        update(Operation)
        .where(Operation.id == operation_id, Operation.owes_since.is_(None))
        .values(state=OperationState.RUNNING, error=None)
    )


def is_past_deadline(session: Session, operation_id: UUID) -> bool:
    """Tell whether the operation's time is over, by the database's clock."""
    return bool(
        session.execute(
            text("SELECT deadline_at < clock_timestamp() FROM operations WHERE id = :o"),
            {"o": operation_id},
        ).scalar_one()
    )


_HAS_UNFINISHED = text(
    "SELECT EXISTS (SELECT 1 FROM steps WHERE operation_id = :o "
    "AND state IN ('queued', 'running', 'undo', 'undoing'))"
)


def has_unfinished(session: Session, operation_id: UUID) -> bool:
    """True while any step of the operation is yet to be done or undone."""
    return bool(session.execute(_HAS_UNFINISHED, {"o": operation_id}).scalar_one())


_END = text(
    """
    WITH ended AS (
        UPDATE operations
           SET state = :state, result = CAST(:result AS jsonb), error = CAST(:error AS jsonb),
               finished_at = clock_timestamp(), updated_at = clock_timestamp()
         WHERE id = :id AND state IN ('queued', 'running', 'undoing')
        RETURNING id, kind, state, result, error
    ), let_go AS (
        UPDATE instances SET operation_id = NULL, updated_at = clock_timestamp()
          FROM ended WHERE instances.operation_id = ended.id
    )
    SELECT id, kind, state, result, error,
           ARRAY(SELECT task_id FROM operation_aliases a WHERE a.operation_id = ended.id)
      FROM ended
    """
)


def end_operation(
    session: Session,
    operation_id: UUID,
    state: OperationState,
    *,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> Outcome | None:
    """End an operation and let go of its guest.

    Returns:
        Its outcome, to be published after the commit; None when it had ended already: whoever
        comes second changes nothing.
    """
    ended = session.execute(
        _END,
        {
            "id": operation_id,
            "state": state.value,
            "result": None if result is None else json.dumps(result, default=str),
            "error": None if error is None else json.dumps(error, default=str),
        },
    )
    row = ended.one_or_none()
    return None if row is None else Outcome.from_row(row)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the outside wants of a running operation.

    Args:
        cancel_requested: that it stops.
        is_past_deadline: whether its time is over.
        force_complete_by: who wants it to end now, whatever that costs the guest.
        params: its parameters as they are by now.
    """

    cancel_requested: bool
    is_past_deadline: bool
    force_complete_by: str | None
    params: dict[str, Any]


def write_progress(session: Speaker, operation_id: UUID, progress: dict[str, Any]) -> Wishes:
    """Write progress and read the wishes of the outside in one statement."""
    row = session.execute(
        text(
            """
            UPDATE operations SET progress = progress || CAST(:progress AS jsonb),
                   updated_at = clock_timestamp()
             WHERE id = :id
            RETURNING cancel_requested, COALESCE(deadline_at < clock_timestamp(), false),
                      force_complete_by, params
            """
        ),
        {"id": operation_id, "progress": json.dumps(progress, default=str)},
    ).one()
    return Wishes(bool(row[0]), bool(row[1]), row[2], row[3])


def commit_unless_cancelled(session: Session, key: StepKey) -> bool:
    """Set an operation's point of no return, in one statement with the question for a cancel.

    Args:
        session: an open transaction.
        key: the step that asks; it must still be the asker's.

    Returns:
        True when a cancel came first; nothing was set then.

    Raises:
        LeaseLost: the step is another worker's.
    """
    assert_owned(session, key)
    is_cancelled = session.execute(
        text(
            "UPDATE operations SET is_committed = NOT cancel_requested WHERE id = :o "
            "RETURNING cancel_requested"
        ),
        {"o": key.operation_id},
    ).scalar_one()
    return bool(is_cancelled)


def find_real_id(session: Session, task_id: UUID) -> UUID:
    """Return the operation that a task's id means: its own, or one that was under way already."""
    if session.get(Operation, task_id) is not None:
        return task_id
    known = session.get(OperationAlias, task_id)
    return task_id if known is None else known.operation_id


def request_cancel(session: Session, operation_id: UUID, *, requested_by: str | None) -> Operation:
    """Ask an operation to stop.

    Raises:
        NotFound: there is no such operation.
        StateConflict: it is a migration in post-copy.
    """
    operation = session.get(Operation, find_real_id(session, operation_id), with_for_update=True)
    if operation is None:
        raise NotFound(
            f"There is no operation {operation_id}.",
            {"what": "operation", "name": str(operation_id)},
        )
    if not operation.state.is_final and is_in_post_copy(session, operation_id):
        raise StateConflict(
            "The migration is in post-copy: a part of the guest's memory is on either host, so it"
            " can only go on.",
            {
                "expected": ["disks", "memory"],
                "actual": "post_copy",
                "hint": "Wait for its end; innkeeper migrate-set --bandwidth-mib-s may hurry it.",
            },
        )
    if not operation.state.is_final and not operation.is_committed:
        operation.cancel_requested = True
        operation.cancel_requested_by = requested_by
    session.flush()
    return operation
