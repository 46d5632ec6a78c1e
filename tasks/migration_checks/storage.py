"""The guest's disks on the destination: whether they are there, fit there, and mean the same."""

from collections.abc import Iterator, Sequence

from innkeeper.errors import CapacityError, RequestError
from models.disk import Disk
from models.disks import list_disks
from tasks.config_drive import rebuild_drive_of
from tasks.context import Pool
from tasks.failed_check import Failure, failure
from tasks.guest_pools import pool_of
from tasks.migration_checks.move import Move
from tasks.migration_checks.survey import fingerprint_bases
from virt import disks

GIB = 1024**3
MIB = 1024**2


def check_pool(move: Move) -> Iterator[Failure]:
    """The pools must be there and take files; the probe file was the test of that."""
    for name, seen in (move.seen.get("pools") or {}).items():
        if seen.get("problem"):
            yield failure(
                "pool",
                f"Pool {name} of {move.services.name} cannot be written: {seen['problem']}.",
                "Look at that file system: whether it is mounted, full, or read-only.",
            )


def check_room(move: Move) -> Iterator[Failure]:
    """What is copied must fit: the disks' whole size, or what is in them with over-commit."""
    rows = move.database.run(lambda session: list_disks(session, move.instance.id))
    for pool in move.pools:
        in_pool = [row for row in rows if pool_of(move.instance, row) == pool.name]
        for told in _check_room_in(move, pool, in_pool):
            yield {**told, "pool": pool.name}


def _check_room_in(move: Move, pool: Pool, rows: Sequence[Disk]) -> Iterator[Failure]:
    host = move.hosts.get(move.dst)
    may_overcommit = host is not None and host.disk_overcommit > 1
    allocated = move.survey.get("allocated") or {}
    needed_bytes = sum(
        int(allocated.get(row.target, row.size_bytes)) if may_overcommit else row.size_bytes
        for row in rows
    )
    if pool.name == move.instance.pool:
        here = fingerprint_bases(move, rows)
        for sha256, base in (move.survey.get("bases") or {}).items():
            needed_bytes += 0 if sha256 in here else int(base["size_bytes"])
    reserve_bytes = (host.reserved_disk_gib if host is not None else 0) * GIB
    free_bytes = disks.free_bytes(pool.instance_dir(move.instance.id))
    if free_bytes - reserve_bytes < needed_bytes:
        kept = f", of which {reserve_bytes // GIB} GiB are kept free" if reserve_bytes else ""
        yield failure(
            "disk",
            f"Pool {pool.name} of {move.services.name} has {free_bytes // MIB} MiB "
            f"free{kept}; the guest's disks need {-(-needed_bytes // MIB)} MiB"
            f"{'' if may_overcommit else ' at their full size, for disk is not over-committed'}.",
            "Free space in the pool, or choose another destination.",
        )


def check_bases(move: Move) -> Iterator[Failure]:
    """A base image that both hosts have must be the same file, not only bear the same name."""
    rows = move.database.run(lambda session: list_disks(session, move.instance.id))
    told = move.survey.get("bases") or {}
    for sha256, here in fingerprint_bases(move, rows).items():
        there = told.get(sha256)
        if there is not None and there != here:
            how = (
                f"{here['size_bytes']} bytes long, not {there['size_bytes']}"
                if here["size_bytes"] != there["size_bytes"]
                else "of other content"
            )
            yield failure(
                "base",
                f"The base image {sha256[:12]}… on {move.services.name} is {how}; one of the two "
                "hosts has a damaged copy.",
                f"Compare sha256sum of the file in images/ on {move.src} and {move.dst} with its "
                "name, and remove the copy that differs; it is fetched again.",
            )


def check_drive(move: Move) -> Iterator[Failure]:
    """The destination must be able to build the guest's config drive, as the source built it."""
    try:
        rebuild_drive_of(move.instance, move.database, move.keyring, host=move.services.name)
    except (CapacityError, RequestError) as error:
        yield failure("config_drive", error.message, error.hint)
