"""How a migrated guest's disks travel: stay where both hosts see them, or be copied.

The hosts are asked, not the settings: each writes a file into the pool that the other must read.
A lock that the destination holds on its file tells the source whether locks cross between them.
"""

from dataclasses import asdict, dataclass
from typing import Any

from innkeeper.errors import PrecheckFailed
from innkeeper.states import Handover, Storage
from innkeeper.types import MigrationPolicy
from tasks.context import StepContext
from tasks.failed_check import Failure, failure
from virt import sharing
from virt.file_locks import LOCKING_TYPES, SHARED_TYPES, get_file_system_type


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLook:
    """What the source has found out about the pool that holds the guest.

    Args:
        pool: its name on both hosts.
        src: host.
        dst: host.
        file_system: its type on the source.
        is_shared: the source reads what the destination has written.
        is_lock_seen: the destination's lock is in the source's way.
        is_trusted: the operator vouches for the file system.
        has_files: the destination has a directory of the guest.
    """

    pool: str
    src: str
    dst: str
    file_system: str
    is_shared: bool
    is_lock_seen: bool = False
    is_trusted: bool = False
    has_files: bool = False


def probe_on_destination(context: StepContext) -> dict[str, Any]:
    """Write the probe into the pool and hold a lock on it; return what is found there."""
    directory = context.pool.path
    context.intend(probe_directory=str(directory))
    sharing.write_probe(directory, context.operation.id)
    context.midway()
    return {
        "pool": str(directory),
        "is_probe_locked": sharing.lock_probe(directory, context.operation.id),
        "has_files": context.pool.instance_dir(context.instance.id).exists(),
    }


def look_from_source(context: StepContext) -> StorageLook:
    """Read the destination's probe, and answer it."""
    directory, token = context.pool.path, context.operation.id
    is_shared = sharing.read_probe(directory, token)
    if is_shared:
        context.intend(answer_directory=str(directory))
        sharing.write_answer(directory, token)
    context.midway()
    found = context.details["check_destination"]
    return StorageLook(
        pool=context.pool.name,
        src=str(context.operation.src_host),
        dst=str(context.operation.dst_host),
        file_system=get_file_system_type(directory),
        is_shared=is_shared,
        is_lock_seen=is_shared
        and bool(found.get("is_probe_locked"))
        and sharing.is_probe_locked(directory, token),
        is_trusted=context.pool.trusted_coherent,
        has_files=bool(found.get("has_files")),
    )


def choose_storage(wanted: Storage, look: StorageLook) -> Storage:
    """Return how the disks travel: as was asked for, else as the hosts see each other's files."""
    if wanted != Storage.AUTO:
        return wanted
    return Storage.SHARED if look.is_shared else Storage.BLOCK


def explain_storage(look: StorageLook) -> str:
    """Return in words why the disks travel so."""
    if look.is_shared:
        return (
            f"shared: {look.src} and {look.dst} read each other's probe in pool {look.pool}"
            f" ({look.file_system})"
        )
    return f"block: {look.src} does not see the probe of {look.dst} in pool {look.pool}"


def find_storage_failures(policy: MigrationPolicy, look: StorageLook) -> list[Failure]:
    """Return why the disks cannot travel as the policy wants it; pure."""
    failures = []
    if not look.is_shared and look.has_files:
        # An old overlay under a mirrored one would shine through wherever the new one is empty.
        failures.append(refuse_files(look.dst, look.pool))
    if policy.storage == Storage.SHARED and not look.is_shared:
        failures.append(
            failure(
                "storage",
                f"Pool {look.pool} is not shared by the two hosts: the probe file of {look.dst} is "
                f"not seen on {look.src}.",
                "Use --storage block or auto.",
            )
        )
    if policy.storage == Storage.BLOCK and look.is_shared:
        failures.append(
            failure(
                "storage",
                f"Pool {look.pool} is shared by the two hosts; a block migration would copy the "
                "disk onto itself.",
                "Use --storage shared or auto.",
            )
        )
    is_known = look.file_system in SHARED_TYPES
    if look.is_shared and not (is_known or look.is_trusted):
        failures.append(
            failure(
                "coherence",
                f"Pool {look.pool} is shared, but its file system {look.file_system} is none that "
                "libvirt knows to keep both hosts' caches in step.",
                "If it does, say so: trusted_coherent = true for the pool, on both hosts.",
            )
        )
    if policy.handover == Handover.FAST and (why := _why_unlocked(look)):
        failures.append(
            failure(
                "handover",
                f"{why}, so a fast hand-over could run the guest twice.",
                "Use --handover safe, or a shared pool whose locks work.",
            )
        )
    return failures


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


def require_answer(context: StepContext) -> None:
    """See on the destination that the sharing goes both ways.

    Raises:
        PrecheckFailed: what the source has written is not seen here.
    """
    if sharing.read_answer(context.pool.path, context.operation.id):
        return
    operation, pool = context.operation, context.pool.name
    told = failure(
        "storage",
        f"{operation.src_host} sees in pool {pool} what {operation.dst_host} writes, but not the "
        "other way round.",
        "Look at the mounts of the pool on both hosts.",
    )
    raise PrecheckFailed(
        f"Instance {context.instance.name} cannot move to {operation.dst_host}: {told['message']}",
        {"failures": [told], "hint": told["hint"]},
    )


def look_to_wire(look: StorageLook) -> dict[str, Any]:
    """Return the ledger's form."""
    return asdict(look)
