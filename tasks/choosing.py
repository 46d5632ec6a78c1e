"""Chooses a host and claims it, in one transaction.

Locks are taken in one order, guest, group, host, and one host at a time, so that no two choices
wait for each other. Under the group's lock nobody else places a member; under the host's lock
nobody else claims there.
"""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy.orm import Session

from innkeeper.types import InstanceSpec
from models.claims import (
    insert_claim,
    list_host_snapshots,
    lock_host_snapshot,
    split_by_pool,
)
from models.disks import list_disks
from models.instance import Instance
from models.known_image import KnownImage, find_known_image
from models.server_groups import lock_group_stand
from tasks.disk_plan import add_up_gib, plan_disks, size_gib
from tasks.guest_pools import pool_of
from tasks.placement import Demand, Refusal, list_refusals, no_host_fits, rank


def demand_of(
    session: Session,
    instance: Instance,
    *,
    may_split_group: bool = False,
    keeps_group: bool = True,
    image: KnownImage | None = None,
    disk_gib: Mapping[str, int] | None = None,
) -> Demand:
    """Return what a guest needs of a host, as of now.

    Its group's row stays locked until the transaction ends.

    Args:
        session: an open transaction.
        instance: the guest, held by the operation that places it.
        may_split_group: see ``MigrationPolicy``.
        keeps_group: False for whoever only foretells, and locks nothing.
        image: what is known of its image, where that was asked already.
        disk_gib: what its disks may grow to in each pool, where that was counted already.
    """
    group = lock_group_stand(session, instance, keeps=keeps_group)
    image = image or _find_image(session, instance)
    return Demand(
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        disk_gib=_count_disk_gib(session, instance, image) if disk_gib is None else disk_gib,
        group=group,
        may_split_group=may_split_group,
        image_on=image.hosts,
    )


def choose_and_claim(
    session: Session,
    *,
    instance: Instance,
    operation_id: UUID,
    demand: Demand,
    wanted: str | None,
    ignored: frozenset[str],
) -> tuple[str, list[Refusal]]:
    """Take the best host that fits, and claim the guest's resources there.

    The snapshot ranks; the host's row lock decides. A host that filled up meanwhile is refused
    and the next one is tried.

    Args:
        session: an open transaction, in which ``demand`` was made.
        instance: the guest.
        operation_id: the operation that holds it.
        demand: what it needs.
        wanted: consider only this host; it must fit like any other.
        ignored: hosts that have failed already, or that the guest must leave.

    Returns:
        The host, and the refusals of the others.

    Raises:
        NoHostFits: with every refusal.
    """
    names, refusals = rank(list_host_snapshots(session), demand, wanted=wanted, ignored=ignored)
    for name in names:
        # A host that does not fit after all is let go of again with the savepoint, for the next.
        attempt = session.begin_nested() if name != names[-1] else None
        snapshot = lock_host_snapshot(session, name)
        late = list_refusals(snapshot, demand) if snapshot is not None else []
        if snapshot is None or late:
            if attempt is not None:
                attempt.rollback()
            refusals.extend(late)
            continue
        own_gib, elsewhere_gib = split_by_pool(demand.disk_gib, instance.pool)
        insert_claim(
            session,
            host=name,
            instance_id=instance.id,
            operation_id=operation_id,
            pool=instance.pool,
            sizes={
                "vcpus": demand.vcpus,
                "memory_mib": demand.memory_mib,
                "disk_gib": own_gib,
            },
            elsewhere_gib=elsewhere_gib,
        )
        if attempt is not None:
            attempt.commit()
        return name, refusals
    raise no_host_fits(f"instance {instance.name}", refusals, wanted=wanted)


def _count_disk_gib(session: Session, instance: Instance, image: KnownImage) -> dict[str, int]:
    """Count what the disks may grow to; a root disk of the image's size by that, where known."""
    made = list_disks(session, instance.id)
    if made:
        return add_up_gib((pool_of(instance, disk), disk.size_bytes) for disk in made)
    spec = InstanceSpec.model_validate(instance.spec)
    return size_gib(plan_disks(spec, image_bytes=image.virtual_size_bytes))


def _find_image(session: Session, instance: Instance) -> KnownImage:
    return find_known_image(
        session,
        sha256=instance.image_sha256 or instance.spec.get("sha256"),
        sha512=instance.spec.get("sha512"),
        pool=instance.pool,
    )
