"""The disk part of a claim, put right once an image's own size is known."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models.claims import lock_host_snapshot, split_by_pool
from models.host import Claim
from models.instance import Instance
from models.ledger import Speaker

_CLAIMED = text(
    "SELECT pool, disk_gib, elsewhere_gib FROM claims WHERE instance_id = :instance_id "
    "AND host = :host"
)


def find_claimed_gib(session: Speaker, *, host: str, instance_id: UUID) -> dict[str, int] | None:
    """Return what a guest's claim on a host holds in each pool, GiB; None without a claim."""
    claimed = session.execute(_CLAIMED, {"instance_id": instance_id, "host": host}).one_or_none()
    if claimed is None:
        return None
    return {**claimed.elsewhere_gib, claimed.pool: claimed.disk_gib}


def fit_disk_claim(
    session: Session, *, host: str, instance_id: UUID, disk_gib: Mapping[str, int]
) -> tuple[tuple[str, ...], float] | None:
    """Make a guest's claim on a host what its disks take, if the host has room for it.

    The guest's row is told in any case, so that the next host is asked for the right size.

    Args:
        session: an open transaction.
        host: the host that holds the claim.
        instance_id: the guest.
        disk_gib: GiB of its disks in each pool.

    Returns:
        None when it fits; else the first pools on one file system that is too full, and the GiB
        that are free there beside the guest's own claim.
    """
    claimed_gib = find_claimed_gib(session, host=host, instance_id=instance_id)
    if claimed_gib is None or claimed_gib == dict(disk_gib):
        return None
    snapshot = lock_host_snapshot(session, host)
    if snapshot is None:
        return None
    instance = session.get_one(Instance, instance_id)
    instance.disk_gib = sum(disk_gib.values())
    for pools in snapshot.group_pools(disk_gib):
        beside = snapshot.list_pools_beside(pools[0])
        own_gib = sum(claimed_gib.get(pool, 0) for pool in beside)
        free_gib = snapshot.disk_free_gib(pools[0]) + own_gib
        if sum(disk_gib[pool] for pool in pools) > free_gib:
            return pools, free_gib
    claim = session.scalars(
        select(Claim).where(Claim.instance_id == instance_id, Claim.host == host)
    ).one()
    claim.disk_gib, claim.elsewhere_gib = split_by_pool(disk_gib, claim.pool)
    return None
