"""A hand on a migration under way: its policy is changed, or it is told to end now.

Both are columns that the running step reads with its progress; nothing is sent to a host.
"""

from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from innkeeper.errors import InvalidRequest, NotFound, StateConflict
from innkeeper.migration_types import MigrationChange
from innkeeper.states import OperationState, StepState
from innkeeper.types import parse_request
from models import queries
from models.migrations import POST_COPY
from models.operation import Migration, Operation, Step
from models.operations import get_instance_by_reference
from models.queries import record_event
from tasks.migration_policy import change, policy_of

# The guest is on the destination, or on its way there without return.
PAST_RETURN = frozenset({"settling", "committed", "done"})


def change_migration(
    session: Session,
    *,
    target: str,
    changes: dict[str, Any],
    requested_by: str | None = None,
) -> dict[str, Any]:
    """Change the policy of a migration that waits or runs.

    Queue: control; a millisecond. The host follows within a second.
    Idempotency: the policy is a row; changing it twice is changing it once.
    Undo: change it back.
    On crash: ask again.
    Retries: none.
    """
    wanted = parse_request(MigrationChange, changes)
    given = wanted.model_dump(mode="json", exclude_none=True)
    if not given:
        raise InvalidRequest(
            "The request changes nothing.",
            {"problems": [{"path": "changes", "message": "name at least one field"}]},
        )
    operation, migration = _get_steerable(session, target)
    if migration.phase == POST_COPY and set(given) != {"bandwidth_mib_s"}:
        _refuse(
            "In post-copy only bandwidth_mib_s can be changed: the guest runs on the destination.",
            POST_COPY,
        )
    before = policy_of(operation.params)
    by = requested_by or "somebody"
    resolved = change(before, operation.params.get("policy_from") or {}, wanted, by=by)
    operation.params = {**operation.params, **resolved.to_params()}
    longer_s = resolved.policy.deadline_s - before.deadline_s
    if longer_s and operation.deadline_at is not None:
        operation.deadline_at = Operation.deadline_at + func.make_interval(
            0, 0, 0, 0, 0, 0, longer_s
        )
    record_event(
        session,
        "migration.changed",
        instance_id=operation.instance_id,
        operation_id=operation.id,
        host=operation.src_host,
        data={"set": given, "by": by},
    )
    session.flush()
    session.expire(operation)
    return queries.show_operation(session, operation.id).model_dump(mode="json")


def force_complete_migration(
    session: Session, *, target: str, requested_by: str | None = None
) -> dict[str, Any]:
    """Have a running migration end now: by post-copy where that is allowed, else by a pause.

    Queue: control; a millisecond. The host follows within a second.
    Idempotency: the wish is a column; wishing twice is wishing once.
    Undo: none; the migration may still be cancelled, but in post-copy.
    On crash: ask again.
    Retries: none.
    """
    operation, migration = _get_steerable(session, target)
    if migration.phase == POST_COPY:
        _refuse(
            "The migration is in post-copy: it ends by itself when the memory has followed.",
            POST_COPY,
        )
    step = session.scalars(
        select(Step)
        .where(Step.operation_id == operation.id, Step.name == "migrate")
        .order_by(Step.position.desc())
        .limit(1)
    ).one()
    if step.state != StepState.RUNNING:
        waits = f" It waits for {step.waiting_for}." if step.waiting_for else ""
        _refuse(
            f"The migration copies nothing yet, so there is nothing to complete.{waits}",
            migration.phase,
            hint="Ask again when it copies; innkeeper migrate-set changes its policy already.",
        )
    if operation.force_complete_by is None:
        operation.force_complete_by = requested_by or "somebody"
        record_event(
            session,
            "migration.force_complete",
            instance_id=operation.instance_id,
            operation_id=operation.id,
            host=operation.src_host,
            data={"by": operation.force_complete_by},
        )
    session.flush()
    return queries.show_operation(session, operation.id).model_dump(mode="json")


def _get_steerable(session: Session, target: str) -> tuple[Operation, Migration]:
    """Get a migration by its operation's id, or by its guest, and keep its row locked.

    Raises:
        NotFound: there is none.
        StateConflict: it has ended, is undone, or the guest has left already.
    """
    operation = _find_operation(session, target)
    migration = None if operation is None else session.get(Migration, operation.id)
    if operation is None or migration is None:
        raise NotFound(
            f"{target!r} is not being migrated.", {"what": "migration", "name": str(target)}
        )
    if operation.state.is_final or operation.state is OperationState.UNDOING:
        _refuse(f"The migration is {operation.state.value} already.", operation.state.value)
    if migration.phase in PAST_RETURN:
        _refuse("The guest has left its source already.", migration.phase)
    return operation, migration


def _find_operation(session: Session, target: str) -> Operation | None:
    try:
        named: UUID | None = UUID(str(target))
    except ValueError:
        named = None
    operation = None if named is None else session.get(Operation, named, with_for_update=True)
    if operation is not None:
        return operation
    holder = get_instance_by_reference(session, str(target)).operation_id
    return None if holder is None else session.get(Operation, holder, with_for_update=True)


def _refuse(message: str, actual: str, *, hint: str | None = None) -> NoReturn:
    details: dict[str, Any] = {"expected": ["queued", "running"], "actual": actual}
    raise StateConflict(message, details | ({"hint": hint} if hint else {}))
