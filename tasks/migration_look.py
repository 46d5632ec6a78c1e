"""The first steps of a live migration: the source tells, the destination and the source look.

Nothing is made here but the files that show whether the hosts share the guest's pool.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from innkeeper.errors import PrecheckFailed
from tasks.context import StepContext
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
from tasks.migration_checks.ports import find_free_port
from tasks.migration_endings import set_phase
from tasks.migration_storage import (
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
    """Look whether the destination can take the guest, and leave a probe file for the source.

    Queue: host.<dst>; tens of milliseconds.
    Idempotency: only looks; the probe file's name is the operation's id.
    Undo: removes the probe file.
    On crash: looks again.
    Retries: while libvirt is out of reach. Failed checks are reported with the source's.
    """
    found: dict[str, Any] = {"pool_problem": None}
    try:
        found |= probe_on_destination(context)
    except OSError as error:
        found["pool_problem"] = error.strerror or str(error)
    return Done(look_at_host(move_of(context), found))


def look_at_host(move: Move, found: dict[str, Any]) -> dict[str, Any]:
    """Make a destination's checks, and return what the source must know.

    Args:
        move: what is judged, on its destination.
        found: what was found out about its pool.
    """
    seen = {
        **found,
        "free_port": find_free_port(),
        "tls": look_on_destination(move.services, move.policy),
        "listen_address": move.services.listen_address,
    }
    return {**seen, "checks": run_checks(CHECKS_ON_DESTINATION, replace(move, seen=seen))}


def remove_probe(context: StepContext) -> None:
    """Undo of check_destination."""
    directory = context.step.undo.get("probe_directory")
    context.midway()
    if directory:
        sharing.remove_probe(Path(directory), context.operation.id)


def check_source(context: StepContext) -> Done:
    """Look whether the source can let the guest go, and decide how its disks travel.

    Queue: host.<src>; tens of milliseconds.
    Idempotency: only looks, and answers the destination's probe in a file of the operation's name.
    Undo: removes the answer.
    On crash: looks again.
    Retries: while libvirt is out of reach; never failed checks, which are reported all at once.
    """
    look = look_from_source(context)
    move = replace(move_of(context), storage=look)
    outcomes = [
        *move.seen.get("checks", ()),
        *run_checks((*CHECKS_OF_GUEST, *CHECKS_ON_SOURCE), move),
    ]
    if look.is_shared:
        outcomes = without_copy(outcomes)
    failures = list_failures(outcomes)
    if failures:
        raise refusal_of(move, failures)
    storage, reason = choose_storage(move.policy.storage, look), explain_storage(look)
    context.note(reason)
    operation = context.operation
    return Done(
        {
            "storage": storage.value,
            "storage_reason": reason,
            "is_shared": look.is_shared,
            "tls": move.tls[0],
            "pool": look_to_wire(look),
            "inode": find_inode(context.pool.instance_dir(context.instance.id)),
            "checks": outcomes,
        },
        lambda session: set_phase(session, operation, storage=storage.value, phase="preparing"),
    )


def remove_answer(context: StepContext) -> None:
    """Undo of check_source."""
    directory = context.step.undo.get("answer_directory")
    context.midway()
    if directory:
        sharing.remove_answer(Path(directory), context.operation.id)


def refusal_of(move: Move, failures: list[Failure]) -> PrecheckFailed:
    """Return the error that tells all failed checks of a move at once."""
    listing = " ".join(str(each["message"]) for each in failures)
    hints = dict.fromkeys(str(each["hint"]) for each in failures)
    return PrecheckFailed(
        f"Instance {move.instance.name} cannot move to {move.dst}: {listing}",
        {"failures": failures, "hint": " ".join(hints)},
    )
