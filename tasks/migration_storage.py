"""How a migrated guest's disks travel: stay where both hosts see them, or be copied.

The hosts are asked, not the settings: each writes a file into the pool that the other must read. A
guest may have disks in several pools, and each pool is asked for itself. A lock that the
destination holds on its file tells the source whether locks cross between them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from innkeeper.errors import PrecheckFailed
from innkeeper.states import Handover, Storage
from innkeeper.types import MigrationPolicy
from tasks.context import Pool, StepContext
from tasks.failed_check import Failure, failure
from tasks.guest_pools import get_guest_pools
from virt import sharing
from virt.file_locks import LOCKING_TYPES, SHARED_TYPES, get_file_system_type


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLook:
    """What the source has found out about a pool that holds disks of the guest.

    Args:
        pool: its name on both hosts.
        src: host.
        dst: host.
        file_system: its type on the source.
        is_shared: the source reads what the destination has written.
        is_lock_seen: the destination's lock is in the source's way.
        is_trusted: the operator vouches for the file system.
        has_files: the destination has a directory of the guest.
        twin: another pool of the guest that is the same directory on the source; None for none.
    """

    pool: str
    src: str
    dst: str
    file_system: str
    is_shared: bool
    is_lock_seen: bool = False
    is_trusted: bool = False
    has_files: bool = False
    twin: str | None = None


def probe_on_destination(context: StepContext) -> dict[str, Any]:
    """Write a probe into each pool and hold a lock on it; return what is found there."""
    token, pools = context.operation.id, get_guest_pools(context)
    context.intend(probe_directories=[str(pool.path) for pool in pools])
    problems = {pool.name: _write_probe(pool, token) for pool in pools}
    context.midway()
    return {
        pool.name: {
            "path": str(pool.path),
            "problem": problems[pool.name],
            "is_probe_locked": problems[pool.name] is None and sharing.lock_probe(pool.path, token),
            "has_files": pool.instance_dir(context.instance.id).exists(),
        }
        for pool in pools
    }


def _write_probe(pool: Pool, token: UUID) -> str | None:
    """Write a probe; return why that cannot be, None when it is there."""
    try:
        sharing.write_probe(pool.path, token)
    except OSError as error:
        return error.strerror or str(error)
    return None


def look_from_source(context: StepContext) -> tuple[StorageLook, ...]:
    """Read the destination's probe in each pool, and answer those that are seen."""
    pools, token = get_guest_pools(context), context.operation.id
    shared = [pool for pool in pools if sharing.read_probe(pool.path, token)]
    if shared:
        context.intend(answer_directories=[str(pool.path) for pool in shared])
    for pool in shared:
        sharing.write_answer(pool.path, token)
    context.midway()
    found = context.details["check_destination"].get("pools") or {}
    return tuple(
        _look_at(context, pool, found.get(pool.name) or {}, is_shared=pool in shared)
        for pool in pools
    )


def _look_at(
    context: StepContext, pool: Pool, found: Mapping[str, Any], *, is_shared: bool
) -> StorageLook:
    return StorageLook(
        pool=pool.name,
        src=str(context.operation.src_host),
        dst=str(context.operation.dst_host),
        file_system=get_file_system_type(pool.path),
        is_shared=is_shared,
        is_lock_seen=is_shared
        and bool(found.get("is_probe_locked"))
        and sharing.is_probe_locked(pool.path, context.operation.id),
        is_trusted=pool.trusted_coherent,
        has_files=bool(found.get("has_files")),
        twin=find_twin(pool, get_guest_pools(context), context.instance.id),
    )


def find_twin(pool: Pool, pools: Iterable[Pool], instance_id: UUID) -> str | None:
    """Find another of a guest's pools in which its directory is the very same one."""
    own = pool.instance_dir(instance_id)
    for other in pools:
        directory = other.instance_dir(instance_id)
        is_there = own.exists() and directory.exists()
        if other.name != pool.name and is_there and own.samefile(directory):
            return other.name
    return None


def choose_storage(looks: Sequence[StorageLook]) -> Storage:
    """Return how the disks travel, as the hosts see each other's files; pure."""
    seen = {look.is_shared for look in looks}
    if len(seen) > 1:
        return Storage.MIXED
    return Storage.SHARED if seen == {True} else Storage.BLOCK


def explain_storage(looks: Sequence[StorageLook]) -> str:
    """Return in words why the disks travel so."""
    return f"{choose_storage(looks)}: " + "; ".join(
        f"{look.src} and {look.dst} read each other's probe in pool {look.pool}"
        f" ({look.file_system})"
        if look.is_shared
        else f"{look.src} does not see the probe of {look.dst} in pool {look.pool}"
        for look in looks
    )


def find_storage_failures(policy: MigrationPolicy, looks: Sequence[StorageLook]) -> list[Failure]:
    """Return why the disks cannot travel as the policy wants it; pure."""
    failures = []
    for look in looks:
        if not look.is_shared and look.has_files:
            # An old overlay under a mirrored one would shine through wherever the new one is empty.
            failures.append(refuse_files(look.dst, look.pool))
    failures += _find_twins(looks)
    failures += _find_contradictions(policy.storage, looks)
    for look in looks:
        is_known = look.file_system in SHARED_TYPES
        if look.is_shared and not (is_known or look.is_trusted):
            failures.append(
                failure(
                    "coherence",
                    f"Pool {look.pool} is shared, but its file system {look.file_system} is none "
                    "that libvirt knows to keep both hosts' caches in step.",
                    "If it does, say so: trusted_coherent = true for the pool, on both hosts.",
                )
            )
    why = next(filter(None, map(_why_unlocked, looks)), None)
    if policy.handover == Handover.FAST and why:
        failures.append(
            failure(
                "handover",
                f"{why}, so a fast hand-over could run the guest twice.",
                "Use --handover safe, or shared pools whose locks work for all its disks.",
            )
        )
    return failures


def _find_contradictions(wanted: Storage, looks: Sequence[StorageLook]) -> Iterator[Failure]:
    """Yield what the two hosts share, or do not, against what is asked for."""
    found = choose_storage(looks)
    if wanted in (Storage.AUTO, found):
        return
    hint = f"Use --storage {found} or auto."
    if wanted == Storage.MIXED:
        names = " and ".join(look.pool for look in looks)
        how = "shared" if found is Storage.SHARED else "not shared"
        yield failure(
            "storage",
            f"All pools of the guest ({names}) are {how} by the two hosts: there is nothing mixed.",
            hint,
        )
        return
    for look in looks:
        if wanted == Storage.SHARED and not look.is_shared:
            yield failure(
                "storage",
                f"Pool {look.pool} is not shared by the two hosts: the probe file of {look.dst} is "
                f"not seen on {look.src}.",
                hint,
            )
        if wanted == Storage.BLOCK and look.is_shared:
            yield failure(
                "storage",
                f"Pool {look.pool} is shared by the two hosts; a block migration would copy the "
                "disk onto itself.",
                hint,
            )


def _find_twins(looks: Sequence[StorageLook]) -> Iterator[Failure]:
    """Yield a pool that is removed from after the move, but is another one as well."""
    for look in looks:
        if look.twin is not None and not look.is_shared:
            yield failure(
                "pool",
                f"Pools {look.pool} and {look.twin} are one directory on {look.src}: what is left "
                "behind in one could be the other's.",
                "Give each pool a directory of its own.",
            )


def _why_unlocked(look: StorageLook) -> str | None:
    """Return why no lock would stop a second QEMU; None when one would."""
    if not look.is_shared:
        return f"Pool {look.pool} is not shared, and no file lock is seen by both hosts"
    if not look.is_lock_seen:
        return f"{look.src} does not see the lock that {look.dst} holds in pool {look.pool}"
    if look.file_system not in LOCKING_TYPES and not look.is_trusted:
        return (
            f"Nobody vouches for the locks of pool {look.pool}, whose file system is"
            f" {look.file_system}"
        )
    return None


def refuse_files(host: str, pool: str) -> Failure:
    """Return the failure of a destination that holds files which are not this operation's."""
    return failure(
        "disk_exists",
        f"{host} has files of this guest already, in pool {pool}.",
        "They are left from an earlier move and are removed when its clean-up is done; see "
        "innkeeper operations for one that still owes it. Others are never removed.",
    )


def require_answers(context: StepContext, pools: Iterable[Pool]) -> None:
    """See on the destination that the sharing goes both ways.

    Args:
        context: the step on the destination.
        pools: those of which the source has seen the probe.

    Raises:
        PrecheckFailed: what the source has written is not seen here.
    """
    operation = context.operation
    told = [
        failure(
            "storage",
            f"{operation.src_host} sees in pool {pool.name} what {operation.dst_host} writes, but "
            "not the other way round.",
            "Look at the mounts of the pool on both hosts.",
        )
        for pool in pools
        if not sharing.read_answer(pool.path, operation.id)
    ]
    if told:
        listing = " ".join(each["message"] for each in told)
        raise PrecheckFailed(
            f"Instance {context.instance.name} cannot move to {operation.dst_host}: {listing}",
            {"failures": told, "hint": told[0]["hint"]},
        )


def look_to_wire(look: StorageLook) -> dict[str, Any]:
    """Return the ledger's form."""
    return asdict(look)
