"""The disk part of a claim, put right once an image's own size is known."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.claims import lock_host_snapshot
from models.host import Claim
from models.image import Image
from models.instance import Instance


def fit_disk_claim(
    session: Session, *, host: str, instance_id: UUID, disk_gib: int
) -> float | None:
    """Make a guest's claim on a host what its disks take, if the host has room for it.

    The guest's row is told in any case, so that the next host is asked for the right size.

    Args:
        session: an open transaction.
        host: the host that holds the claim.
        instance_id: the guest.
        disk_gib: GiB of all its disks.

    Returns:
        None when it fits; else the GiB that are free beside the guest's own claim.
    """
    own = select(Claim).where(Claim.instance_id == instance_id, Claim.host == host)
    claim = session.scalars(own).one_or_none()
    if claim is None or claim.disk_gib == disk_gib:
        return None
    snapshot = lock_host_snapshot(session, host)
    if snapshot is None:
        return None
    instance = session.get_one(Instance, instance_id)
    instance.disk_gib = disk_gib
    free_gib = snapshot.disk_free_gib(instance.pool) + claim.disk_gib
    if disk_gib > free_gib:
        return free_gib
    claim.disk_gib = disk_gib
    return None


def find_virtual_size(session: Session, sha256: str | None) -> int:
    """Return the bytes of an image's disk as a guest sees it; 0 for one that no host has seen."""
    if sha256 is None:
        return 0
    found = select(Image.virtual_size_bytes).where(Image.sha256 == sha256)
    return session.scalar(found) or 0
