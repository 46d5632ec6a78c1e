"""Which of several destinations a migration takes: the first, in their order, that passes."""

from collections.abc import Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from innkeeper.errors import NoHostFits, PrecheckFailed
from innkeeper.types import MigrationPolicy
from models.claims import list_host_snapshots, release_claim
from models.instance import Instance
from models.operation import Operation
from models.operations import PlannedStep
from tasks.choosing import choose_and_claim, demand_of
from tasks.context import StepContext
from tasks.migration_candidates import CHECK_CANDIDATE, Outcome, has_passed, judge
from tasks.migration_endings import set_phase
from tasks.placement import Demand, Refusal, rank
from tasks.workflow import Done

CHOOSE_DESTINATION = "choose_destination"
MOST_CANDIDATES = 3


def plan_candidates(
    session: Session, plan: Sequence[PlannedStep], *, src: str, dst: str, demand: Demand
) -> list[PlannedStep]:
    """Put looks at several candidates into a migration's plan, after the source has told.

    Args:
        session: an open transaction, in which ``demand`` was made.
        plan: the steps without them.
        src: where the guest is.
        dst: the best host, which is claimed already.
        demand: what the guest needs.

    Returns:
        The plan; the same one where there is nothing to choose from.
    """
    ranked, _ = rank(list_host_snapshots(session), demand, wanted=None, ignored=frozenset({src}))
    candidates = [dst, *(name for name in ranked if name != dst)][:MOST_CANDIDATES]
    if len(candidates) == 1:
        return list(plan)
    looks = [PlannedStep(CHECK_CANDIDATE, name) for name in candidates]
    survey, *rest = plan
    return [survey, *looks, PlannedStep(CHOOSE_DESTINATION, src), *rest]


def choose_destination(context: StepContext) -> Done:
    """Look from the source at every candidate, and take the first that has passed.

    Queue: host.<src>; tens of milliseconds, three seconds where a host does not answer.
    Idempotency: only looks; the claim changes over in the transaction that records the choice.
    Undo: none.
    On crash: looks again.
    Retries: while libvirt is out of reach. Where no candidate has passed, the claimed one stays:
        its own checks then say why it cannot be.
    """
    context.midway()
    judged = judge(context)
    refusals = {
        host: _refusal(host, outcomes)
        for host, outcomes in judged.items()
        if not has_passed(outcomes)
    }
    claimed = str(context.operation.dst_host)
    passed = [host for host in judged if host not in refusals]
    if not passed:
        context.note(f"no candidate has passed its checks; going on with {claimed}")
        refusals.pop(claimed, None)
    operation = context.operation
    return Done(
        {"passed": passed, "refused": sorted(refusals)},
        lambda session: _take_first(session, operation, passed, refusals),
        rings_anew=bool(passed) and passed[0] != claimed,
    )


def _refusal(host: str, outcomes: Sequence[Outcome]) -> Refusal:
    said = dict.fromkeys(str(each["message"]) for each in outcomes if not each["passed"])
    return Refusal(host, PrecheckFailed.code, " ".join(said))


def _take_first(
    session: Session,
    operation: Operation,
    passed: Sequence[str],
    refusals: Mapping[str, Refusal],
) -> None:
    row = session.get_one(Operation, operation.id, with_for_update=True, populate_existing=True)
    row.refusals = [*row.refusals, *(refusal.to_wire() for refusal in refusals.values())]
    claimed = str(row.dst_host)
    for host in passed:
        if host == claimed or _change_over(session, row, host):
            break
    session.flush()


def _change_over(session: Session, operation: Operation, host: str) -> bool:
    """Claim another host in the place of the claimed one; False when it has filled up meanwhile."""
    claimed = str(operation.dst_host)
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    policy = MigrationPolicy.model_validate(operation.params["policy"])
    try:
        choose_and_claim(
            session,
            instance=instance,
            operation_id=operation.id,
            demand=demand_of(session, instance, may_split_group=policy.may_split_group),
            wanted=host,
            ignored=frozenset(),
        )
    except NoHostFits as full:
        operation.refusals = [*operation.refusals, *full.details["refusals"]]
        return False
    release_claim(session, host=claimed, instance_id=instance.id)
    operation.dst_host = host
    set_phase(session, operation, dst_host=host)
    session.execute(
        text(
            "UPDATE steps SET host = :host WHERE operation_id = :o AND host = :claimed "
            "AND state = 'queued' AND attempt = 0"
        ),
        {"o": operation.id, "host": host, "claimed": claimed},
    )
    return True
