"""The promise that no domain, process, file, lock or claim is left without an owner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from tests.chaos.checker.files_look import SeenFile
from tests.chaos.checker.fleet_look import OFF
from tests.chaos.checker.look import Look
from tests.chaos.checker.violation import Finding

FETCHING = frozenset({"fetch_image", "prepare_destination"})


def nothing_orphaned(look: Look) -> Iterator[Finding]:
    """Whatever is on a host belongs to a living guest that is there, or to a live operation.

    What bears the id of a guest whose record says «deleted» is the record's untruth, and told by
    ``record_is_true``; a running copy in the wrong place is told by ``runs_once``.
    """
    yield from _orphaned_domains(look)
    yield from _orphaned_processes(look)
    for file in look.fleet.files:
        yield from _JUDGES[file.kind](look, file)
    yield from _orphaned_claims(look)


def _orphaned_domains(look: Look) -> Iterator[Finding]:
    for domain in look.fleet.domains:
        if domain.id in look.moving:
            continue
        guest = look.ledger.guests.get(domain.id)
        seen = f"domain {domain.name} {domain.id} on {domain.host}, {domain.state},"
        if guest is None:
            yield Finding(f"{seen} has no record")
        elif (
            guest.is_living
            and not domain.is_executing
            and domain.host not in look.ledger.homes(guest)
        ):
            yield Finding(f"{seen} is a leftover: its guest is on {guest.host}", guest.id)


def _orphaned_processes(look: Look) -> Iterator[Finding]:
    alive = {(d.host, d.id) for d in look.fleet.domains if d.state not in OFF}
    for qemu in look.fleet.qemus:
        if qemu.id is None or (qemu.host, qemu.id) not in alive:
            yield Finding(
                f"QEMU process {qemu.pid} of {qemu.id} on {qemu.host} belongs to no active domain",
                qemu.id,
            )


def _judge_instance_file(look: Look, file: SeenFile) -> Iterator[Finding]:
    guest = look.ledger.guests.get(file.owner) if file.owner is not None else None
    if guest is None:
        if file.owner is None or file.owner not in look.moving:
            yield Finding(f"{file.where} belongs to no guest")
        return
    if guest.id in look.moving or not guest.is_living:
        return
    is_in_place = file.pool in guest.pools and file.host in {None, *look.ledger.homes(guest)}
    if not is_in_place:
        yield Finding(
            f"{file.where} is a leftover: its guest is on {guest.host} in pool"
            f" {' and '.join(guest.pools)}",
            guest.id,
        )
        return
    is_directory = PurePosixPath(file.path).name == str(guest.id)
    known = {path for d in look.fleet.domains_of(guest.id) for path in d.files}
    is_settled = look.ledger.find_live(guest.id) is None and bool(known)
    if not is_directory and is_settled and file.path not in known:
        yield Finding(f"{file.where} is named by no domain of its guest", guest.id)


def _judge_console(look: Look, file: SeenFile) -> Iterator[Finding]:
    guest = look.ledger.guests.get(file.owner) if file.owner is not None else None
    if guest is None:
        if file.owner is None or file.owner not in look.moving:
            yield Finding(f"{file.where} belongs to no guest")
    elif (
        guest.id not in look.moving
        and guest.is_living
        and file.host not in look.ledger.homes(guest)
    ):
        yield Finding(f"{file.where} is a leftover: its guest is on {guest.host}", guest.id)


def _judge_probe(look: Look, file: SeenFile) -> Iterator[Finding]:
    operation = look.ledger.operations.get(file.owner) if file.owner is not None else None
    if operation is None or not operation.is_live:
        yield Finding(f"{file.where} probes for no live operation", operation_id=file.owner)


def _judge_partial(look: Look, file: SeenFile) -> Iterator[Finding]:
    """A broken download is one, unless a running fetch is continuing it or just wrote it."""
    began = [
        step.started_at.timestamp()
        for operation in look.ledger.live
        for step in look.ledger.steps.get(operation.id, [])
        if step.name in FETCHING and step.state == "running" and step.started_at is not None
        if file.host is None or step.host == file.host
    ]
    if not began or file.changed_at_s < min(began):
        yield Finding(f"{file.where} is a partial download that no fetch continues")


def _judge_guest_lock(look: Look, file: SeenFile) -> Iterator[Finding]:
    if file.owner is None or look.ledger.find_live(file.owner) is None:
        yield Finding(f"{file.where} is held, but no operation is alive on its guest", file.owner)


def _judge_image_lock(look: Look, file: SeenFile) -> Iterator[Finding]:
    if not any(operation.kind in ("spawn", "live_migrate") for operation in look.ledger.live):
        yield Finding(f"{file.where} is held, but no operation fetches an image")


_JUDGES = {
    "instance": _judge_instance_file,
    "console": _judge_console,
    "probe": _judge_probe,
    "partial": _judge_partial,
    "guest_lock": _judge_guest_lock,
    "image_lock": _judge_image_lock,
}


def _orphaned_claims(look: Look) -> Iterator[Finding]:
    live = {operation.id for operation in look.ledger.live}
    claimed = {(claim.instance_id, claim.host) for claim in look.ledger.claims}
    for claim in look.ledger.claims:
        guest = look.ledger.guests[claim.instance_id]
        if guest.id in look.moving or claim.operation_id in live:
            continue
        if claim.host not in look.ledger.homes(guest):
            yield Finding(
                f"claim on {claim.host} of guest {guest.name} {guest.id}, which is"
                f" {guest.state} on {guest.host}",
                guest.id,
            )
    for guest in look.guests:
        if guest.is_living and guest.host is not None and (guest.id, guest.host) not in claimed:
            yield Finding(f"guest {guest.name} {guest.id} has no claim on {guest.host}", guest.id)
