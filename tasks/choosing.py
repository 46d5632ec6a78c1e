"""Chooses a host and claims it, in the request's own transaction."""

from uuid import UUID

from sqlalchemy.orm import Session

from models.claims import insert_claim, list_host_snapshots, lock_host_snapshot
from tasks.placement import Demand, Refusal, list_refusals, no_host_fits, rank


def choose_and_claim(
    session: Session,
    *,
    instance_id: UUID,
    operation_id: UUID,
    demand: Demand,
    wanted: str | None,
    ignored: frozenset[str],
    what: str,
) -> tuple[str, list[Refusal]]:
    """Take the best host that fits, and claim the guest's resources there.

    The snapshot ranks; the host's row lock decides. A host that filled up meanwhile is refused
    and the next one is tried.

    Returns:
        The host, and the refusals of the others.

    Raises:
        NoHostFits: with every refusal.
    """
    names, refusals = rank(list_host_snapshots(session), demand, wanted=wanted, ignored=ignored)
    for name in names:
        snapshot = lock_host_snapshot(session, name)
        if snapshot is None:
            continue
        late = list_refusals(snapshot, demand)
        if late:
            refusals.extend(late)
            continue
        insert_claim(
            session,
            host=name,
            instance_id=instance_id,
            operation_id=operation_id,
            sizes={
                "vcpus": demand.vcpus,
                "memory_mib": demand.memory_mib,
                "disk_gib": demand.disk_gib,
            },
        )
        return name, refusals
    raise no_host_fits(what, refusals)
