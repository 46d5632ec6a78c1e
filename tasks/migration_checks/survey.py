"""What the source tells of the guest before a destination is asked: facts, no judgement."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.disk import Disk
from models.disks import list_disks
from models.ledger import database_now
from tasks.migration_checks.move import Move
from virt.clock import measure_skew_s
from virt.disks import get_usage
from virt.fingerprint import find_fingerprint
from virt.migration_needs import DiskFiles, read_needs


def tell_of_guest(move: Move) -> dict[str, Any]:
    """Return what a destination must know of the guest, as JSON.

    Without a running domain there is less to tell; the source's own checks say so.
    """
    told: dict[str, Any] = {"clock": survey_clock(move), "pool": str(move.pool.path)}
    view = move.hypervisor.find_domain(move.instance.id)
    if view is None or not view.is_active:
        return told
    needs = read_needs(move.hypervisor.dump_xml(move.instance.id, migratable=True, secure=False))
    disks = move.database.run(lambda session: list_disks(session, move.instance.id))
    return {
        **told,
        "needs": asdict(needs),
        "allocated": _count_allocated(needs.disks),
        "bases": fingerprint_bases(move, disks),
    }


def survey_clock(move: Move) -> dict[str, float]:
    """Return how far this host's clock is ahead of the database's, in seconds."""
    skew_s, doubt_s = measure_skew_s(lambda: move.database.run(database_now).timestamp())
    return {"skew_s": round(skew_s, 4), "doubt_s": round(doubt_s, 4)}


def fingerprint_bases(move: Move, disks: Iterable[Disk]) -> dict[str, Any]:
    """Return for each base image of the disks that is here what its file is like."""
    found = {}
    for disk in disks:
        sha256 = disk.backing_sha256
        if sha256 is None or sha256 in found:
            continue
        path = move.pool.images.path_for(sha256, disk.backing_format or "qcow2")
        seen = find_fingerprint(path, str(move.operation_id))
        if seen is not None:
            found[sha256] = asdict(seen)
    return found


def _count_allocated(disks: Iterable[DiskFiles]) -> dict[str, int]:
    """Count what each disk's top layer takes, in bytes: what a block copy writes anew at most."""
    found = {}
    for disk in disks:
        path = Path(disk.paths[0]) if disk.paths else None
        if path is not None and path.is_absolute() and path.is_file():
            found[disk.target] = get_usage(path).allocated_bytes
    return found
