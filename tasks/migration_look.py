"""The first steps of a live migration: the source tells, the destination and the source look.

Nothing is made here but the files that show whether the hosts share the guest's pools. For half a
minute the destination listens at one of QEMU's ports, for the source to try the way.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from innkeeper.errors import PrecheckFailed
from tasks.context import StepContext, get_pool
from tasks.landing import find_inode
from tasks.migration_checks import (
    CHECKS_OF_GUEST,
    CHECKS_ON_DESTINATION,
    CHECKS_ON_SOURCE,
    Failure,
    Move,
    list_failures,
    move_of,
    run_checks,
    tell_of_guest,
)
from tasks.migration_checks.check import without_copy
from tasks.migration_checks.ports import rehearse
from tasks.migration_endings import set_phase
from tasks.migration_storage import (
    StorageLook,
    choose_storage,
    explain_storage,
    look_from_source,
    look_to_wire,
    probe_on_destination,
)
from tasks.migration_tls import look_on_destination
from tasks.workflow import Done
from virt import sharing


def survey_guest(context: StepContext) -> Done:
    """Tell what a destination must know of the guest.

    Queue: host.<src>; tens of milliseconds.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: while libvirt is out of reach.
    """
    context.midway()
    return Done(tell_of_guest(move_of(context)))


def check_destination(context: StepContext) -> Done:
    """Look whether the destination can take the guest, and leave probe files for the source.

    Queue: host.<dst>; tens of milliseconds.
    Idempotency: only looks; a probe file's name is the operation's id.
    Undo: removes the probe files.
    On crash: looks again.
    Retries: while libvirt is out of reach. Failed checks are reported with the source's.
    """
    return Done(look_at_host(move_of(context), probe_on_destination(context)))


def look_at_host(move: Move, pools: dict[str, Any]) -> dict[str, Any]:
    """Make a destination's checks, and return what the source must know.

    Args:
        move: what is judged, on its destination.
        pools: what was found out about each of its pools, by name.
    """
    seen = {
        "pools": pools,
        **rehearse(move),
        "tls": look_on_destination(move.services, move.policy),
        "listen_address": move.services.listen_address,
    }
    return {**seen, "checks": run_checks(CHECKS_ON_DESTINATION, replace(move, seen=seen))}


def remove_probe(context: StepContext) -> None:
    """Undo of check_destination."""
    context.midway()
    for directory in _list_directories(context, "probe"):
        sharing.remove_probe(directory, context.operation.id)


def check_source(context: StepContext) -> Done:
    """Look whether the source can let the guest go, and decide how its disks travel.

    Queue: host.<src>; tens of milliseconds.
    Idempotency: only looks, and answers the destination's probes in files of the operation's name.
    Undo: removes the answers.
    On crash: looks again.
    Retries: while libvirt is out of reach; never failed checks, which are reported all at once.
    """
    looks = look_from_source(context)
    move = replace(move_of(context), storage=looks)
    outcomes = [
        *move.seen.get("checks", ()),
        *run_checks((*CHECKS_OF_GUEST, *CHECKS_ON_SOURCE), move),
    ]
    shared = {look.pool for look in looks if look.is_shared}
    outcomes = without_copy(outcomes, shared=shared, own=context.instance.pool)
    failures = list_failures(outcomes)
    if failures:
        raise refusal_of(move, failures)
    storage, reason = choose_storage(looks), explain_storage(looks)
    context.note(reason)
    operation = context.operation
    return Done(
        {
            "storage": storage.value,
            "storage_reason": reason,
            "tls": move.tls[0],
            "pools": {look.pool: _tell_of_pool(context, look) for look in looks},
            "checks": outcomes,
        },
        lambda session: set_phase(session, operation, storage=storage.value, phase="preparing"),
    )


def _tell_of_pool(context: StepContext, look: StorageLook) -> dict[str, Any]:
    """Return what the later steps must know of a pool, the guest's directory in it included."""
    directory = get_pool(context.host, look.pool).instance_dir(context.instance.id)
    return {**look_to_wire(look), "inode": find_inode(directory)}


def remove_answer(context: StepContext) -> None:
    """Undo of check_source."""
    context.midway()
    for directory in _list_directories(context, "answer"):
        sharing.remove_answer(directory, context.operation.id)


def _list_directories(context: StepContext, what: str) -> list[Path]:
    """Return the directories into which the ledger says that the step has written."""
    undo = context.step.undo
    # An earlier release wrote the one directory that a guest had.
    recorded = (*undo.get(f"{what}_directories", ()), undo.get(f"{what}_directory"))
    return [Path(directory) for directory in recorded if directory]


def refusal_of(move: Move, failures: list[Failure]) -> PrecheckFailed:
    """Return the error that tells all failed checks of a move at once."""
    listing = " ".join(str(each["message"]) for each in failures)
    hints = dict.fromkeys(str(each["hint"]) for each in failures)
    return PrecheckFailed(
        f"Instance {move.instance.name} cannot move to {move.dst}: {listing}",
        {"failures": failures, "hint": " ".join(hints)},
    )
