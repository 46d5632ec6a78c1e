"""Beyond return: the guest runs on the destination, and the rest of its memory is on the source.

Neither half is the guest. So nothing is undone, ended or resumed on the source until the memory has
followed; a connection that broke is made anew for as long as it takes.
"""

from sqlalchemy import update
from sqlalchemy.orm import Session

from innkeeper.errors import InnkeeperError, OutcomeUnknown
from innkeeper.states import InstanceState
from innkeeper.types import MigrationPolicy
from models.migrations import POST_COPY, set_migration
from models.operation import Operation
from models.queries import record_event
from tasks.context import StepContext


def may_post_copy(context: StepContext, policy: MigrationPolicy) -> bool:
    """Tell whether a migration is begun so that post-copy is possible; of a paused guest never."""
    return policy.post_copy and context.operation.state_before == InstanceState.ACTIVE


def commit_post_copy(context: StepContext) -> None:
    """Write that the point of no return has been passed: seen on the source, not only asked for."""
    operation = context.operation
    if operation.is_committed:
        return

    def commit(session: Session) -> None:
        session.execute(
            update(Operation).where(Operation.id == operation.id).values(is_committed=True)
        )
        set_migration(session, operation.id, phase=POST_COPY)
        record_event(
            session,
            "migration.post_copy",
            instance_id=operation.instance_id,
            operation_id=operation.id,
            host=operation.src_host,
            data={"src": operation.src_host, "dst": operation.dst_host},
        )

    context.database.run(commit)
    operation.is_committed = True
    context.note("the guest runs on the destination; its memory follows")


def interrupted(context: StepContext, error: InnkeeperError | None) -> OutcomeUnknown:
    """Return the error of a post-copy that broke off: it is taken up again with the next try."""
    operation = context.operation
    cause = f" {error.message}" if error is not None else ""
    return OutcomeUnknown(
        f"The post-copy from {operation.src_host} to {operation.dst_host} is interrupted: the guest"
        f" stands still where it needs memory that has not followed, and goes on when the two"
        f" reach each other again.{cause}",
        {
            "host": operation.src_host,
            "hint": "Mend the network between the two hosts. End the guest on neither: each has a"
            " part of its memory.",
        },
    )
