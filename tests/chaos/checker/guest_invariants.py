"""Promises about guests: each runs once, and its record says what virsh says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from tests.chaos.checker.fleet_look import SeenDomain
from tests.chaos.checker.ledger_look import OWED, GuestRow, OperationRow
from tests.chaos.checker.look import Look
from tests.chaos.checker.violation import Finding

DOMAIN_STATES = {
    "active": frozenset({"running"}),
    "paused": frozenset({"paused"}),
    "suspended": frozenset({"shut off", "pmsuspended"}),
    "stopped": frozenset({"shut off", "crashed"}),
}
POWER_STATES = {
    "running": frozenset({"running", "idle", "in shutdown"}),
    "paused": frozenset({"paused"}),
    "shutdown": frozenset({"shut off"}),
    # A domain that crashed is destroyed by libvirt, and then shut off.
    "crashed": frozenset({"crashed", "shut off"}),
    "suspended": frozenset({"pmsuspended"}),
}
NOTHING_CHANGED = frozenset({"not_started", "rolled_back"})
ENDING_WRITES = timedelta(milliseconds=200)
"""An operation's end touches its guest's row in the same transaction, a moment later or earlier."""


def runs_once(look: Look) -> Iterator[Finding]:
    """A guest executes on one host at most: its record's, in the domain its record means.

    A guest whose record is ``unknown`` may execute on any one host, and one that moves with the
    fast hand-over is started by libvirt before the record knows.
    """
    for instance_id in {domain.id for domain in look.fleet.domains}:
        executing = [d for d in look.fleet.domains_of(instance_id) if d.is_executing]
        guest = look.ledger.guests.get(instance_id)
        if len(executing) > 1 and instance_id not in look.moving:
            hosts = " and ".join(sorted(domain.host for domain in executing))
            yield Finding(f"domain {instance_id} is running on {hosts}", instance_id)
        if guest is None or not guest.is_living or guest.state == "unknown":
            continue
        live = look.ledger.find_live(instance_id)
        if instance_id in look.moving or (live is not None and live.handover == "fast"):
            continue
        for domain in executing:
            if domain.host != guest.host:
                yield Finding(
                    f"guest {guest.name} {guest.id} is running on {domain.host}, but its record"
                    f" places it on {guest.host}",
                    guest.id,
                )
            elif domain.epoch != guest.domain_epoch:
                yield Finding(
                    f"guest {guest.name} {guest.id} is running on {domain.host} in a domain of"
                    f" epoch {domain.epoch}; its record means epoch {guest.domain_epoch}",
                    guest.id,
                )


def record_is_true(look: Look) -> Iterator[Finding]:
    """A guest's record says where it is and what it does, or that this is unknown.

    Guests that a live operation holds are left out: they are on their way.
    """
    for guest in look.guests:
        if look.ledger.find_live(guest.id) is not None:
            continue
        findings = _judge_living(look, guest) if guest.is_living else _judge_deleted(look, guest)
        for what in [*findings, *_judge_last_migration(look, guest), *_judge_effect(look, guest)]:
            yield Finding(f"guest {guest.name} {guest.id} {what}", guest.id)


def _judge_living(look: Look, guest: GuestRow) -> Iterator[str]:
    if guest.state == "building":
        yield "is building, but no operation builds it"
    if guest.host is None or guest.state not in DOMAIN_STATES:
        return
    here = next((d for d in look.fleet.domains_of(guest.id) if d.host == guest.host), None)
    if here is None:
        yield f"is {guest.state} on {guest.host} by its record, but has no domain there"
        return
    yield from _compare(guest, here)


def _compare(guest: GuestRow, domain: SeenDomain) -> Iterator[str]:
    seen = f"and {domain.state} on {domain.host}"
    # With the policy «alert» a departing power state is written down and nothing else happens.
    if domain.state not in DOMAIN_STATES[guest.state] and guest.power_policy != "alert":
        yield f"is {guest.state} by its record, {seen}"
    if domain.state not in POWER_STATES.get(guest.power_state, {domain.state}):
        yield f"has power {guest.power_state} by its record, {seen}"


def _judge_deleted(look: Look, guest: GuestRow) -> Iterator[str]:
    for domain in look.fleet.domains_of(guest.id):
        yield f"is deleted, but has a domain on {domain.host}, {domain.state}"
    for file in look.fleet.files:
        if file.owner == guest.id and file.kind in ("instance", "console"):
            yield f"is deleted, but has {file.where}"


def _judge_last_migration(look: Look, guest: GuestRow) -> Iterator[str]:
    """The last move that was committed says where the guest is now."""
    if not guest.is_living or guest.state == "unknown":
        return
    moves = [
        operation
        for operation in look.ledger.by_guest.get(guest.id, [])
        if operation.kind == "live_migrate"
        and (operation.state == "succeeded" or operation.is_committed)
    ]
    if not moves or moves[-1].state != "succeeded":
        return
    dst = (moves[-1].result or {}).get("dst")
    places = {d.host for d in look.fleet.domains_of(guest.id)}
    if guest.host != dst or dst not in places:
        yield (
            f"was moved to {dst} by {moves[-1].id}, but its record places it on {guest.host}"
            f" and its domain is on {', '.join(sorted(places)) or 'no host'}"
        )


def _judge_effect(look: Look, guest: GuestRow) -> Iterator[str]:
    """What the guest's last operation says of its failure agrees with what is there."""
    operation = look.ledger.find_newest(guest.id)
    if operation is None or operation.error is None:
        return
    says = f"{operation.title} says {operation.effect}"
    if operation.effect == "unknown":
        if not _is_settled(look, guest, operation):
            yield f"is {guest.state}, but {says} and nothing has settled it since"
        return
    if operation.effect not in NOTHING_CHANGED:
        return
    if operation.kind == "spawn":
        if guest.is_living:
            yield f"is {guest.state}, but {says} of its spawn"
        return
    if operation.src_host is not None and guest.host != operation.src_host:
        yield f"is on {guest.host}, but {says} and began on {operation.src_host}"
    if guest.state != operation.state_before and not _has_power_changed(look, operation):
        yield f"is {guest.state}, but {says} and it was {operation.state_before}"


def _is_settled(look: Look, guest: GuestRow, operation: OperationRow) -> bool:
    steps = look.ledger.steps.get(operation.id, [])
    if guest.state == "unknown" or any(step.state in OWED for step in steps):
        return True
    debts = [step for step in steps if step.undo]
    is_paid = bool(debts) and all(step.state == "undone" for step in debts)
    ended_at = operation.finished_at
    return is_paid or (ended_at is not None and guest.updated_at > ended_at + ENDING_WRITES)


def _has_power_changed(look: Look, operation: OperationRow) -> bool:
    """A guest that died or was switched by others is no longer as the operation found it."""
    return any(
        event.instance_id == operation.instance_id
        and event.kind == "instance.power_changed"
        and event.at > operation.created_at
        for event in look.ledger.events
    )
