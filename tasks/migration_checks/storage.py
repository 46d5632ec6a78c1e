"""The guest's disks on the destination: whether they are there, fit there, and mean the same."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from innkeeper.errors import CapacityError, RequestError
from models.disk import Disk
from models.disks import list_disks
from tasks.config_drive import rebuild_drive_of
from tasks.context import Pool
from tasks.disk_plan import name_together
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
    """What is copied must fit: the disks' whole size, or what is in them with over-commit.

    Pools on one file system have its room together. Which of them are copied is not known yet, so
    that the fewest are named which do not fit.
    """
    rows = move.database.run(lambda session: list_disks(session, move.instance.id))
    needed_bytes = {
        pool.name: _count_needed(
            move, pool, [row for row in rows if pool_of(move.instance, row) == pool.name]
        )
        for pool in move.pools
    }
    for together in _group_by_file_system(move):
        host = move.hosts.get(move.dst)
        reserve_bytes = (host.reserved_disk_gib if host is not None else 0) * GIB
        free_bytes = disks.free_bytes(together[0].instance_dir(move.instance.id))
        needed = {pool.name: needed_bytes[pool.name] for pool in together}
        for pools in find_too_large(needed, free_bytes - reserve_bytes):
            kept = f", of which {reserve_bytes // GIB} GiB are kept free" if reserve_bytes else ""
            wanted_bytes = sum(needed[pool] for pool in pools)
            full = "" if _may_overcommit(move) else " in full size, for disk is not over-committed"
            told = failure(
                "disk",
                f"{move.services.name} has {free_bytes // MIB} MiB free{kept} in "
                f"{name_together(pools)}; the guest's disks there need "
                f"{-(-wanted_bytes // MIB)} MiB{full}.",
                "Free space in the pool, or choose another destination.",
            )
            yield {**told, "pools": pools}


def find_too_large(needed_bytes: Mapping[str, int], room_bytes: int) -> list[tuple[str, ...]]:
    """Return the smallest sets of pools whose needs together are more than there is room; pure.

    Args:
        needed_bytes: what is needed in each of the pools, which are on one file system.
        room_bytes: what there is for all of them.
    """
    if sum(needed_bytes.values()) <= room_bytes:
        return []
    found: list[tuple[str, ...]] = []
    for count in range(1, len(needed_bytes) + 1):
        for pools in combinations(needed_bytes, count):
            is_new = not any(set(known) <= set(pools) for known in found)
            if is_new and sum(needed_bytes[pool] for pool in pools) > room_bytes:
                found.append(pools)
    return found


def _group_by_file_system(move: Move) -> list[list[Pool]]:
    groups: dict[str, list[Pool]] = {}
    for pool in move.pools:
        known = disks.get_file_system_id(pool.instance_dir(move.instance.id))
        groups.setdefault(known, []).append(pool)
    return list(groups.values())


def _count_needed(move: Move, pool: Pool, rows: Sequence[Disk]) -> int:
    """Count the bytes that a copy of the guest's disks takes in a pool, with their bases."""
    allocated = move.survey.get("allocated") or {}
    needed_bytes = sum(
        int(allocated.get(row.target, row.size_bytes)) if _may_overcommit(move) else row.size_bytes
        for row in rows
    )
    if pool.name == move.instance.pool:
        here = fingerprint_bases(move, rows)
        for sha256, base in (move.survey.get("bases") or {}).items():
            needed_bytes += 0 if sha256 in here else int(base["size_bytes"])
    return needed_bytes


def _may_overcommit(move: Move) -> bool:
    host = move.hosts.get(move.dst)
    return host is not None and host.disk_overcommit > 1


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
