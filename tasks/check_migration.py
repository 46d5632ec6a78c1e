"""The checks of a live migration alone: the guest is not taken, nothing is claimed or moved.

An operation without a guest of its own, so that it neither waits for nor disturbs what is being
done to the guest. Its result is the whole table, whatever came of each check.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.states import InstanceState, OperationState
from innkeeper.types import MigrationPolicy
from models.claims import list_host_snapshots
from models.instance import Instance
from models.operation import Operation, Step
from models.operations import PlannedStep, end_operation
from tasks.choosing import demand_of
from tasks.context import StepContext
from tasks.failed_check import failure
from tasks.migration_candidates import (
    CHECK_CANDIDATE,
    Outcome,
    candidate_move,
    check_candidate,
    has_passed,
    judge,
    weigh_host,
)
from tasks.migration_checks import tell_of_guest
from tasks.placement import rank
from tasks.workflow import Done, On, StepSpec, Workflow

MOST_CANDIDATES = 32
DEADLINE_S = 120.0
MIGRATABLE = frozenset({InstanceState.ACTIVE, InstanceState.PAUSED})


def survey_guest(context: StepContext) -> Done:
    """Tell what a destination must know of the guest.

    Queue: host.<src>; tens of milliseconds.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: while libvirt is out of reach.
    """
    context.midway()
    return Done(tell_of_guest(candidate_move(context, str(context.operation.src_host))))


def judge_candidates(context: StepContext) -> Done:
    """Look from the source at every candidate, and put all looks together.

    Queue: host.<src>; tens of milliseconds, three seconds where a host does not answer.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: while libvirt is out of reach.
    """
    context.midway()
    return Done({"destinations": judge(context)})


def plan_check(
    session: Session, instance: Instance, policy: MigrationPolicy
) -> tuple[list[PlannedStep], dict[str, Any]]:
    """Return the steps of a check, and what is known without them.

    Args:
        session: an open transaction.
        instance: the guest.
        policy: how it would go; ``dst`` None asks about every host that fits.

    Returns:
        The steps, and the check's parameters: outcomes of the guest, and of each host.
    """
    src = str(instance.host)
    demand = demand_of(session, instance, may_split_group=policy.may_split_group)
    hosts = {host.name: host for host in list_host_snapshots(session)}
    fitting, _ = rank(hosts.values(), demand, wanted=policy.dst, ignored=frozenset({src}))
    weighed = {
        name: [_not_here(name, src), *weigh_host(host, demand)]
        for name, host in hosts.items()
        if name == policy.dst or (policy.dst is None and name != src)
    }
    asked = fitting[:MOST_CANDIDATES]
    if policy.dst is not None and policy.dst != src and hosts[policy.dst].is_up:
        # Whoever names a host wants to know all that is wrong with it.
        asked = [policy.dst]
    plan = [PlannedStep(CHECK_CANDIDATE, name) for name in asked]
    if plan:
        plan = [PlannedStep("survey_guest", src), *plan, PlannedStep("judge_candidates", src)]
    order = [*asked, *(name for name in weighed if name not in asked)]
    return plan, {
        "policy": policy.model_dump(mode="json"),
        "instance_id": str(instance.id),
        "instance": instance.name,
        "guest": _judge_record(session, instance),
        "weighed": [{"host": name, "checks": weighed[name]} for name in order],
    }


def _not_here(host: str, src: str) -> Outcome:
    if host != src:
        return {"check": "same_host", "passed": True, "host": host}
    found = failure(
        "same_host", f"It is on {src} already.", "Name another host, or leave the choice."
    )
    return {**found, "passed": False, "host": host}


def _judge_record(session: Session, instance: Instance) -> list[Outcome]:
    """Return the checks of the guest's record: what a migration's request would be refused for."""
    outcomes: list[Outcome] = []
    state = {"check": "state", "passed": instance.state in MIGRATABLE, "host": instance.host}
    if not state["passed"]:
        said = f"The guest is {instance.state.value}; only an active or a paused one is moved live."
        state |= failure("state", said, "Start it, or see what has become of it: innkeeper show.")
    outcomes.append(state)
    holder = session.get(Operation, instance.operation_id) if instance.operation_id else None
    busy = {"check": "busy", "passed": holder is None, "host": instance.host}
    if holder is not None:
        said = f"The guest is held by a {holder.kind} operation that has not ended."
        busy |= failure("busy", said, f"Wait for its end: innkeeper watch {holder.id}.")
    return [*outcomes, busy]


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    """Return the table: for each destination every check, passed or failed."""
    judged = session.scalar(
        select(Step.detail).where(
            Step.operation_id == operation.id, Step.name == "judge_candidates"
        )
    )
    looked = (judged or {}).get("destinations") or {}
    guest = operation.params["guest"]
    destinations = []
    for weighed in operation.params["weighed"]:
        host = weighed["host"]
        checks = [*guest, *weighed["checks"], *looked.get(host, ())]
        destinations.append({"host": host, "passed": has_passed(checks), "checks": checks})
    return {
        "operation_id": str(operation.id),
        "instance": operation.params["instance"],
        "src": operation.src_host,
        "can_migrate": any(each["passed"] for each in destinations),
        "destinations": destinations,
    }


def end_checked(session: Session, operation_id: UUID) -> None:
    """End a check for which no host has to be asked: all is known already."""
    operation = session.get_one(Operation, operation_id)
    result = _succeed(session, operation)
    end_operation(session, operation_id, OperationState.SUCCEEDED, result=result)


CHECK_MIGRATION = Workflow(
    kind="check_migration",
    steps=(
        StepSpec("survey_guest", On.SRC, survey_guest, is_harmless=True),
        StepSpec(
            CHECK_CANDIDATE, On.DST, check_candidate, is_harmless=True, may_be_passed_over=True
        ),
        StepSpec("judge_candidates", On.SRC, judge_candidates, is_harmless=True),
    ),
    on_success=_succeed,
    on_failure=lambda _session, _operation: None,
    waits_for_host=False,
)
