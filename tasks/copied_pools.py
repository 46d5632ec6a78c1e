"""Which of a guest's pools its migration copies, as the source has decided and recorded.

What is in the others both hosts see: there nothing is made, copied or removed.
"""

from typing import Any

from innkeeper.states import Storage
from models.disk import Disk
from tasks.context import Pool, StepContext
from tasks.guest_disks import get_guest_disks
from tasks.guest_pools import get_guest_pools, pool_of


def list_copied_pools(context: StepContext) -> list[Pool]:
    """Return the pools, on this host, whose disks are copied; the guest's own comes first."""
    return [pool for pool in get_guest_pools(context) if not _is_shared(context, pool)]


def list_shared_pools(context: StepContext) -> list[Pool]:
    """Return the pools, on this host, whose disks both hosts see."""
    return [pool for pool in get_guest_pools(context) if _is_shared(context, pool)]


def list_copied_disks(context: StepContext) -> list[Disk]:
    """Return the disks that are copied, the root disk first if it is one of them."""
    copied = {pool.name for pool in list_copied_pools(context)}
    disks = get_guest_disks(context)
    return [disk for disk in disks if pool_of(context.instance, disk) in copied]


def find_source_inode(context: StepContext, pool: Pool) -> int | None:
    """Find the number that the guest's directory in a pool had on the source before it moved."""
    checked = context.details["check_source"]
    found = checked["pools"][pool.name] if "pools" in checked else checked
    return found.get("inode")


def _is_shared(context: StepContext, pool: Pool) -> bool:
    checked: dict[str, Any] = context.details["check_source"]
    if "pools" not in checked:
        # Recorded by an earlier release, whose guests have one pool each.
        return bool(checked["storage"] == Storage.SHARED.value)
    return bool(checked["pools"][pool.name]["is_shared"])
