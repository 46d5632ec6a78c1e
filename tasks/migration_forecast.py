"""The forecast of a migration that is about to begin: figures gathered, then pure arithmetic."""

from dataclasses import asdict
from typing import Any

from innkeeper.errors import InnkeeperError
from innkeeper.types import MigrationPolicy
from models.migrations import find_link_bytes_s, set_migration
from tasks.context import StepContext, get_pool
from tasks.copied_pools import list_copied_disks
from tasks.forecast import MIB, Forecast, forecast
from tasks.guest_pools import pool_of
from virt.resident_memory import find_resident_bytes

# What a gigabit link carries; used until a migration between the two hosts has told better.
ASSUMED_LINK_BYTES_S = 112 * MIB
# Measuring takes a second, which only a transfer that lasts much longer may cost.
WORTH_MEASURING_S = 20.0
MEASURED_FOR_S = 1
# A migration that may not end can wait for a better look.
MEASURED_AGAIN_FOR_S = 3
# The unit of st_blocks, whatever the file system's own block is.
BLOCK_BYTES = 512


def foretell(context: StepContext, policy: MigrationPolicy) -> dict[str, Any]:
    """Predict the migration, write it down, and show it.

    Args:
        context: the step on the source, before the job begins.
        policy: what the caller allows.

    Returns:
        The forecast as JSON, with the figures it was made of.
    """
    operation, instance = context.operation, context.instance
    known = context.database.run(
        lambda session: find_link_bytes_s(
            session, src=str(operation.src_host), dst=str(operation.dst_host)
        )
    )
    link_bytes_s = known or float(ASSUMED_LINK_BYTES_S)
    if policy.bandwidth_mib_s:
        link_bytes_s = min(link_bytes_s, float(policy.bandwidth_mib_s * MIB))
    resident_bytes = find_resident_bytes(instance.id, instance.memory_mib * MIB)
    memory_bytes = instance.memory_mib * MIB if resident_bytes is None else resident_bytes
    disk_bytes = _count_disk_bytes(context)
    dirty_bytes_s: int | None = None
    if memory_bytes / link_bytes_s >= WORTH_MEASURING_S:
        dirty_bytes_s = _measure(context, MEASURED_FOR_S)

    def tell() -> Forecast:
        return forecast(
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
            link_bytes_s=link_bytes_s,
            dirty_bytes_s=float(dirty_bytes_s or 0),
            max_downtime_ms=policy.max_downtime_ms,
            deadline_s=policy.deadline_s,
        )

    told = tell()
    if dirty_bytes_s and not told.will_converge:
        # QEMU's sample of a small guest is coarse; nobody is frightened by one look alone.
        again_bytes_s = _measure(context, MEASURED_AGAIN_FOR_S)
        if again_bytes_s is not None:
            dirty_bytes_s = _mean(
                (dirty_bytes_s, MEASURED_FOR_S), (again_bytes_s, MEASURED_AGAIN_FOR_S)
            )
            told = tell()
    facts = {
        **asdict(told),
        "memory_bytes": memory_bytes,
        "disk_bytes": disk_bytes,
        "link_bytes_s": round(link_bytes_s),
        "link_is_assumed": known is None and not policy.bandwidth_mib_s,
        "dirty_bytes_s": dirty_bytes_s,
    }
    applied = {
        "bandwidth_mib_s": policy.bandwidth_mib_s,
        "max_downtime_ms": policy.max_downtime_ms,
    }
    context.database.run(
        lambda session: set_migration(session, operation.id, forecast=facts, applied=applied)
    )
    if dirty_bytes_s is not None:
        context.note(told.why)
    return facts


def _count_disk_bytes(context: StepContext) -> int:
    """Return what is copied of the disks: what their files take, and nothing of shared ones."""
    instance = context.instance
    copied = (
        get_pool(context.host, pool_of(instance, disk)).instance_dir(instance.id) / disk.file
        for disk in list_copied_disks(context)
    )
    return sum(path.stat().st_blocks * BLOCK_BYTES for path in copied)


def _mean(*looks: tuple[int, int]) -> int:
    """Return the mean of rates, each with the seconds that it was measured for."""
    return sum(rate * seconds for rate, seconds in looks) // sum(seconds for _, seconds in looks)


def _measure(context: StepContext, seconds: int) -> int | None:
    try:
        return context.host.hypervisor.measure_dirty_rate(context.instance.id, seconds)
    except InnkeeperError as exc:
        # A forecast is a courtesy: without it the migration is the same.
        context.log.info("dirty rate not measured", reason=str(exc))
        return None
