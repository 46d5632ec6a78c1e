"""The sweeper: whatever a message should have done and did not, is rung again.

Runs every few seconds from beat, and as a process of its own; any number may run at once.
"""

from dataclasses import dataclass
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from innkeeper.errors import HostUnsuitable
from models import sweep
from models.absent_hosts import pass_over_absent
from models.claims import HOST_IS_UP_S
from models.debts import Overdue, find_current_step, list_overdue
from models.hosts import note_silent_hosts
from models.operation import Operation
from models.refusal import prune_refusals
from models.session import Database
from tasks import endings
from tasks.bells import Bells
from tasks.calling import call_waiting
from tasks.crashpoints import crash_point
from tasks.workflow import Workflows

log = structlog.get_logger(__name__)

GRACE_S = 2.0
# Long enough for a way back on hosts that are there; every operation ends 30 s after its deadline.
OVERDUE_GRACE_S = 20.0


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep found."""

    rung: int
    turned_back: int
    published: int


def sweep_once(database: Database, workflows: Workflows, bells: Bells) -> SweepReport:
    """Do one round.

    Args:
        database: where the ledger is.
        workflows: to undo what has to be undone.
        bells: to ring.
    """
    turned_back = 0
    for overdue in database.run(lambda session: list_overdue(session, grace_s=OVERDUE_GRACE_S)):
        turn = database.run(partial(_end_overdue, workflows=workflows, overdue=overdue))
        if turn is endings.Turn.ENDED:
            bells.publish_outcome(overdue.operation_id)
            _call_waiting(database, workflows, bells, overdue.operation_id)
    for stray in database.run(sweep.list_strayed):
        crash_point("sweep", "turning")
        turn = database.run(partial(_turn_back, workflows=workflows, stray=stray))
        if turn is endings.Turn.ENDED:
            bells.publish_outcome(stray.operation_id)
        elif turn is endings.Turn.RING:
            bells.ring(stray.operation_id)
        _call_waiting(database, workflows, bells, stray.operation_id)
        turned_back += 1
    for operation_id, has_ended in database.run(partial(_pass_over, workflows=workflows)):
        (bells.publish_outcome if has_ended else bells.ring)(operation_id)
    due = database.run(lambda session: sweep.take_due_bells(session, grace_s=GRACE_S))
    for bell in due:
        crash_point("sweep", "ringing")
        log.info("ringing again", operation=str(bell.operation_id), position=bell.position)
        bells.ring(bell.operation_id)
    database.run(prune_refusals)
    for host in database.run(lambda session: note_silent_hosts(session, up_s=HOST_IS_UP_S)):
        log.warning("a host is down, its worker is silent", host=host)
    published = bells.make_up_outcomes()
    return SweepReport(len(due), turned_back, published)


def _call_waiting(
    database: Database, workflows: Workflows, bells: Bells, operation_id: UUID
) -> None:
    """Call those for whom an operation that was turned back has made room, or who await its end."""
    operation = database.run(lambda session: session.get_one(Operation, operation_id))
    call_waiting(
        database,
        bells,
        operation,
        doors=workflows[operation.kind].doors,
        has_ended=operation.state.is_final,
    )


def _end_overdue(session: Session, *, workflows: Workflows, overdue: Overdue) -> endings.Turn:
    workflow = workflows[overdue.kind]
    return endings.end_overdue(session, workflow, overdue.operation_id, overdue.limit_s)


def _pass_over(session: Session, *, workflows: Workflows) -> list[tuple[UUID, bool]]:
    """Let operations go on without the hosts that are down, where that is allowed."""
    steps = [
        f"{workflow.kind}.{step.name}"
        for workflow in workflows
        for step in workflow.steps
        if step.may_be_passed_over
    ]
    passed = pass_over_absent(session, steps, HostUnsuitable("The host is down.").to_wire())
    return [
        (
            each.operation_id,
            endings.advance(session, workflows[each.kind], each.operation_id, each.position),
        )
        for each in passed
    ]


def _turn_back(session: Session, *, workflows: Workflows, stray: sweep.Strayed) -> endings.Turn:
    workflow = workflows[stray.kind]
    if stray.why == "undone":
        return endings.finish_undo(session, workflow, stray.operation_id)
    error = endings.stray_error(
        stray.why, kind=stray.kind, cancelled_by=stray.cancelled_by, limit_s=stray.limit_s
    ).with_details(**find_current_step(session, stray.operation_id))
    return endings.turn_back(session, workflow, stray.operation_id, error)
