"""Claims a step and reads what it works on, inside the caller's transaction."""

from uuid import UUID

from sqlalchemy.orm import Session

from innkeeper.states import StepState
from models import debts, ledger
from models.claimed_rows import read_claimed_rows
from tasks.context import name_boundary
from tasks.crashpoints import crash_point
from tasks.engine import Claim, Engine, Verdict

FENCED_RETRY_S = 2.0
# Whoever leaves calls the next; this is for a call that got lost.
ASK_AGAIN_S = 5.0


def try_claim(
    session: Session, engine: Engine, operation_id: UUID, position: int
) -> Claim | Verdict:
    """Claim a step, unless it is done, another's, or has to wait.

    Args:
        session: an open transaction.
        engine: this process's parts.
        operation_id: the operation.
        position: the step's place in its ledger.

    Returns:
        The claim; or what the step's task is to do instead.
    """
    step = ledger.claim_step(
        session,
        operation_id,
        position,
        owner=engine.leases.owner,
        lease_s=engine.leases.lease_s,
    )
    if step is None:
        state = ledger.find_step_state(session, operation_id, position)
        is_over = state in (StepState.DONE, StepState.UNDONE, StepState.FAILED)
        return Verdict.PASS_ON if is_over else Verdict.IGNORE
    operation, instance, is_fenced = read_claimed_rows(
        session.connection(), operation_id, host=step.host
    )
    workflow = engine.workflows[operation.kind]
    spec = workflow.get_step(step.name)
    if step.host is not None and (engine.services is None or engine.services.name != step.host):
        # A message on the wrong queue; the right worker is rung again by the sweeper.
        ledger.decline_step(session, step.key, after_s=0)
        return Verdict.IGNORE
    if is_fenced and step.host is not None:
        ledger.requeue_step(
            session,
            step.key,
            after_s=FENCED_RETRY_S,
            waiting_for=f"{step.host}, which was fenced, to be cleaned",
        )
        return Verdict.IGNORE
    if operation.state.is_final:
        holder = debts.find_holder(session, operation_id)
        if holder is not None:
            ledger.requeue_step(
                session, step.key, after_s=5, waiting_for=f"the guest's {holder} to end"
            )
            return Verdict.IGNORE
    if spec.admit is not None and not step.is_undo and not step.was_begun_before:
        waiting_for = spec.admit.ask(session, operation)
        if waiting_for is not None:
            ledger.decline_step(session, step.key, after_s=ASK_AGAIN_S, waiting_for=waiting_for)
            return Verdict.IGNORE
    crash_point(name_boundary(operation.kind, step), "claiming")
    return Claim(step, operation, instance, step.details_of_done, workflow, spec)
