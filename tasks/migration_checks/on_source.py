"""What the source must see: its guest free to go, and the destination within reach."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy.orm import Session

from innkeeper.states import Handover
from models.disks import list_disks
from models.remote_disks import RemoteDisk, find_prefetch, find_remote_disk
from tasks.failed_check import Failure, failure
from tasks.guest_pools import pool_of
from tasks.migration_checks.check import Check
from tasks.migration_checks.move import Move, get_address
from tasks.migration_checks.ports import (
    FIRST_MIGRATION_PORT,
    LAST_MIGRATION_PORT,
    is_rehearsed,
)
from tasks.migration_storage import find_storage_failures
from tasks.migration_tls import LIBVIRT_TCP_PORT, LIBVIRT_TLS_PORT
from virt.domain_reading import learns_address
from virt.reach import find_unreachable

REACH_TIMEOUT_S = 3.0


def check_domain(move: Move) -> Iterator[Failure]:
    """The guest must be the one of the record, and do what the record says."""
    host = move.services.name
    view = move.hypervisor.find_domain(move.instance.id)
    if view is None or view.epoch != move.instance.domain_epoch:
        yield failure(
            "domain",
            f"{host} has no domain of this guest of epoch {move.instance.domain_epoch}.",
            "Compare innkeeper show with the host's own list of domains.",
        )
        return
    if view.waits_for_disk:
        yield failure(
            "power_state",
            "The guest is held by QEMU: a disk's bytes cannot be read or written.",
            "Mend its storage first; it goes on by itself or with innkeeper reboot --hard.",
        )
    elif view.power_state != move.expected_power:
        yield failure(
            "power_state",
            f"The guest is {view.power_state}, not {move.expected_power}.",
            "Wait for the power-state sync, then ask again.",
        )
    if view.has_job:
        yield failure(
            "job",
            "Libvirt is busy with the guest: another migration, a dump or a save is under way.",
            "Wait for its end, or end it (virsh domjobabort); see virsh domjobinfo.",
        )


def check_blockers(move: Move) -> Iterator[Failure]:
    """Neither snapshots nor block jobs nor QEMU itself may hold the guest."""
    view = move.hypervisor.find_domain(move.instance.id)
    if view is None or not view.is_active:
        return
    found = move.hypervisor.find_blockers(
        move.instance.id, [disk.target for disk in move.needs.disks]
    )
    if found.snapshots:
        yield failure(
            "snapshots",
            f"The guest has {len(found.snapshots)} snapshots ({', '.join(found.snapshots[:5])}), "
            "which a migration would leave behind.",
            f"Remove them: virsh snapshot-delete, or --metadata only, on {move.src}.",
        )
    if found.disk_jobs:
        yield failure(
            "block_job",
            f"A block job runs on the guest's disk {', '.join(found.disk_jobs)}.",
            f"Wait for its end; see virsh blockjob on {move.src}.",
        )
    for reason in found.qemu_reasons:
        yield failure(
            "blocker",
            f"QEMU itself refuses to move the guest: {reason.rstrip('.')}.",
            "Detach the device that it names, or let the guest stay.",
        )


def check_devices(move: Move) -> Iterator[Failure]:
    """No device may be bound to the host."""
    for device in move.needs.bound_devices:
        yield failure(
            "device",
            f"The guest has a {device}, which cannot leave {move.src}.",
            "Detach it first, or let the guest stay.",
        )


def check_layers(move: Move) -> Iterator[Failure]:
    """The files under the running guest must be those of its record."""
    if not move.survey.get("needs"):
        return
    directories = {pool.name: pool.instance_dir(move.instance.id) for pool in move.pools}
    rows = move.database.run(lambda session: list_disks(session, move.instance.id))
    if not rows:
        return
    expected = {}
    pools = {row.target: pool_of(move.instance, row) for row in rows}
    for row in rows:
        paths = [str(directories[pools[row.target]] / row.file)]
        if row.backing_sha256 is not None:
            images = move.pool.images
            paths.append(str(images.path_for(row.backing_sha256, row.backing_format or "qcow2")))
        if row.remote_url is None:
            expected[row.target] = tuple(paths)
    remote = {row.target for row in rows if row.remote_url is not None}
    for disk in move.needs.disks:
        if disk.target in remote or disk.paths == expected.get(disk.target):
            continue
        known = disk.target in expected
        told = failure(
            "layers",
            f"The guest's disk {disk.target} stands on {' over '.join(disk.paths) or 'nothing'}, "
            + (f"not on {' over '.join(expected[disk.target])}." if known else "unknown here."),
            "Somebody has changed its disks by hand; commit or detach what was added "
            "(virsh domblklist, virsh blockcommit).",
        )
        yield {**told, "pool": pools.get(disk.target, move.instance.pool)}


def check_hydrated(move: Move) -> Iterator[Failure]:
    """A guest that still reads from its image's source stays until it does not."""
    instance_id, host = move.instance.id, move.services.name

    def read(session: Session) -> tuple[RemoteDisk | None, dict[str, Any] | None]:
        disk = find_remote_disk(session, instance_id)
        return disk, None if disk is None else find_prefetch(session, disk.wanted_on(host))

    disk, progress = move.database.run(read)
    if disk is None:
        return
    done = "" if progress is None else f"; {float(progress.get('fraction', 0)):.0%} of it is here"
    yield failure(
        "not_hydrated",
        f"The guest still reads its disk from {disk.url}{done}.",
        f"Wait until its image is on the host, or hurry it: innkeeper hydrate {disk.name}.",
    )


def check_storage(move: Move) -> Iterator[Failure]:
    """What is asked for must be what the two hosts share."""
    if move.storage:
        yield from find_storage_failures(move.policy, move.storage)


def check_handover(move: Move) -> Iterator[Failure]:
    """A guest that runs on at once must have its filter's rules by then: with addresses it has."""
    policy = move.policy
    if policy.handover is not Handover.FAST or policy.post_copy:
        return
    if learns_address(move.instance.domain_xml or ""):
        yield failure(
            "handover",
            "Libvirt has to learn the address of a card of the guest, and makes the rules that "
            "keep it from claiming another's some tenths of a second later; a fast hand-over "
            "would not wait for them.",
            "Use --handover safe, or give the guest's cards their addresses.",
        )


def check_reachable(move: Move) -> Iterator[Failure]:
    """The destination must answer from here, within seconds: libvirt's port and QEMU's."""
    address = get_address(move.database, move.dst)
    libvirt_port = LIBVIRT_TLS_PORT if move.tls[0] else LIBVIRT_TCP_PORT
    port = move.seen.get("free_port")
    qemu_ports = () if port is None else (int(port),)
    is_listening = is_rehearsed(move)
    problems = find_unreachable(
        address,
        listening=(libvirt_port,),
        # Where nobody listens being turned away proves the way, but for a firewall that rejects.
        open_later=() if is_listening else qemu_ports,
        rehearsed=qemu_ports if is_listening else (),
        is_there=lambda: is_rehearsed(move),
        timeout_s=REACH_TIMEOUT_S,
    )
    if problems:
        yield failure(
            "reachable",
            f"{move.src} does not reach {move.dst}: {'; '.join(problems)}.",
            f"Let {move.dst}'s firewall and those on the way accept TCP ports {libvirt_port} and "
            f"{FIRST_MIGRATION_PORT}-{LAST_MIGRATION_PORT} from {move.src}; see libvirtd's listen "
            "address there.",
        )


def check_tls(move: Move) -> Iterator[Failure]:
    """Where the move is to be encrypted, both hosts' certificates must be good."""
    yield from move.tls[1]


CHECKS_OF_GUEST = (
    Check("domain", check_domain),
    Check("blocker", check_blockers),
    Check("device", check_devices),
    Check("not_hydrated", check_hydrated),
    Check("layers", check_layers, is_of_copy=True),
)
"""What holds of the guest, wherever it goes."""

CHECKS_ON_SOURCE = (
    Check("storage", check_storage),
    Check("handover", check_handover),
    Check("reachable", check_reachable),
    Check("tls", check_tls),
)
"""What the source sees of one destination."""
