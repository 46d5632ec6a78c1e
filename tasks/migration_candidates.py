"""Several destinations looked at before one is taken: each on its own host, judged on the source.

A candidate is only looked at: nothing is claimed on it and nothing is left there. The same looks
answer ``migrate --check`` and choose the destination of a migration that names none.
"""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.errors import HypervisorBusy, HypervisorUnavailable
from innkeeper.types import MigrationPolicy
from models.claims import HostSnapshot
from models.instance import Instance
from models.operation import Step
from tasks.context import Pool, StepContext
from tasks.migration_checks import (
    CHECKS_OF_GUEST,
    CHECKS_ON_SOURCE,
    Move,
    failure,
    run_checks,
)
from tasks.migration_checks.check import without_copy
from tasks.migration_look import look_at_host
from tasks.migration_storage import StorageLook, find_twin
from tasks.placement import FILTERS, Demand
from tasks.workflow import Done
from virt import sharing
from virt.file_locks import get_file_system_type

CHECK_CANDIDATE = "check_candidate"
MOST_AT_ONCE = 8

Outcome = dict[str, Any]


def candidate_move(context: StepContext, dst: str) -> Move:
    """Return the move of an operation's guest to one of several destinations."""
    operation = context.operation
    params = operation.params
    instance = find_guest(context)
    return Move(
        database=context.database,
        services=context.host,
        keyring=context.keyring,
        instance=instance,
        policy=MigrationPolicy.model_validate(params["policy"]),
        src=str(operation.src_host),
        dst=dst,
        operation_id=operation.id,
        state_before=operation.state_before or instance.state.value,
        epoch=operation.epoch if operation.instance_id is not None else None,
        survey=context.details.get("survey_guest") or {},
        seen={},
    )


def find_guest(context: StepContext) -> Instance:
    """Return the guest that an operation holds, or only asks about."""
    if context.operation.instance_id is not None:
        return context.instance
    guest_id = context.operation.params["instance_id"]
    return context.database.run(lambda session: session.get_one(Instance, guest_id))


def check_candidate(context: StepContext) -> Done:
    """Look whether a host could take the guest; claim and leave nothing there.

    Queue: host.<host>; tens of milliseconds.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: none; a host whose libvirt is out of reach is refused for that.
    """
    move = candidate_move(context, str(context.step.host))
    context.midway()
    try:
        return Done(look_at_host(move, {pool.name: _look_at(move, pool) for pool in move.pools}))
    except (HypervisorUnavailable, HypervisorBusy) as error:
        return Done({"checks": [_failed(move.dst, "libvirt", error.message, error.hint)]})


def _look_at(move: Move, pool: Pool) -> dict[str, Any]:
    """Return what a migration would learn of a pool by its probe, without leaving one."""
    return {
        "path": str(pool.path),
        "problem": _find_problem(pool),
        "id": sharing.find_pool_id(pool.path),
        "has_files": pool.instance_dir(move.instance.id).exists(),
    }


def _find_problem(pool: Pool) -> str | None:
    try:
        # It has no name, so that no crash leaves it behind.
        with tempfile.TemporaryFile(dir=pool.path):
            return None
    except OSError as error:
        return error.strerror or str(error)


def judge(context: StepContext) -> dict[str, list[Outcome]]:
    """Return what speaks for and against each candidate, as the source and it have seen it."""
    looks = context.database.run(lambda session: _read_looks(session, context))
    moves = [replace(candidate_move(context, host), seen=look) for host, look in looks.items()]
    if not moves:
        return {}
    of_guest = run_checks(CHECKS_OF_GUEST, moves[0])
    with ThreadPoolExecutor(max_workers=min(len(moves), MOST_AT_ONCE)) as pool:
        seen_from_here = list(pool.map(_look_across, moves))
    judged = {}
    for move, (shared, across) in zip(moves, seen_from_here, strict=True):
        outcomes = [*of_guest, *move.seen.get("checks", ()), *across]
        judged[move.dst] = without_copy(outcomes, shared=shared, own=move.instance.pool)
    return judged


def _look_across(move: Move) -> tuple[set[str], list[Outcome]]:
    """Return which pools are shared with a candidate, and what is seen of it from here."""
    if "pools" not in move.seen:
        # It did not answer; why, its own look says.
        return set(), []
    looks = tuple(_look_from_here(move, pool) for pool in move.pools)
    shared = {look.pool for look in looks if look.is_shared}
    return shared, run_checks(CHECKS_ON_SOURCE, replace(move, storage=looks))


def _look_from_here(move: Move, pool: Pool) -> StorageLook:
    there = move.seen["pools"].get(pool.name) or {}
    own_id = sharing.find_pool_id(pool.path)
    is_shared = own_id is not None and own_id == there.get("id")
    return StorageLook(
        pool=pool.name,
        src=move.src,
        dst=move.dst,
        file_system=get_file_system_type(pool.path),
        is_shared=is_shared,
        # Only the migration's own probe can tell; it is asked before anything is moved.
        is_lock_seen=is_shared,
        is_trusted=pool.trusted_coherent,
        has_files=bool(there.get("has_files")),
        twin=find_twin(pool, move.pools, move.instance.id),
    )


def _read_looks(session: Session, context: StepContext) -> dict[str, Mapping[str, Any]]:
    """Return what each candidate recorded, in their order; one that is down says why."""
    steps = session.scalars(
        select(Step)
        .where(Step.operation_id == context.operation.id, Step.name == CHECK_CANDIDATE)
        .order_by(Step.position)
    )
    return {
        str(step.host): step.detail
        if step.detail.get("checks")
        else {"checks": [_no_answer(str(step.host), step.error or {})]}
        for step in steps
    }


def _no_answer(host: str, error: Mapping[str, Any]) -> Outcome:
    message = str(error.get("message") or f"{host} has not answered.")
    return _failed(host, "answer", message, "See that host's worker.")


def _failed(host: str, check: str, message: str, hint: str) -> Outcome:
    return {**failure(check, message, hint), "passed": False, "host": host}


def weigh_host(host: HostSnapshot, demand: Demand) -> list[Outcome]:
    """Return the scheduler's own checks of a host in the form of the others."""
    hint = "Choose another destination, or mend what is named."
    outcomes: list[Outcome] = []
    for code, refuse in FILTERS:
        message = refuse(host, demand)
        if message is None:
            outcomes.append({"check": code, "passed": True, "host": host.name})
        else:
            outcomes.append(_failed(host.name, code, message, hint))
    return outcomes


def has_passed(outcomes: Sequence[Outcome]) -> bool:
    """Tell whether no check has failed."""
    return all(each["passed"] for each in outcomes)
