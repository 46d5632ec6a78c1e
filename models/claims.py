"""Claims: the database decides whether a guest fits, under the host's row lock."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from innkeeper.errors import LeaseLost
from innkeeper.states import InstanceState
from models.host import Claim, Host
from models.instance import Instance

HOST_IS_UP_S = 20.0


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """A host as the scheduler sees it."""

    name: str
    is_enabled: bool
    is_up: bool
    disabled_reason: str | None
    vcpus_total: int
    memory_total_mib: int
    disk_total_gib: int
    reserved_vcpus: int
    reserved_memory_mib: int
    reserved_disk_gib: int
    cpu_overcommit: float
    memory_overcommit: float
    disk_overcommit: float
    pools: dict[str, dict[str, Any]]
    vcpus_claimed: int
    memory_claimed_mib: int
    disk_claimed_gib: int
    disk_claimed_gib_by_pool: dict[str, int]
    instances: int

    @property
    def vcpus_free(self) -> float:
        """Virtual CPUs that may still be claimed, over-commit included, the reserve kept."""
        return (self.vcpus_total - self.reserved_vcpus) * self.cpu_overcommit - self.vcpus_claimed

    @property
    def memory_free_mib(self) -> float:
        """MiB of memory that may still be claimed, over-commit included, the reserve kept."""
        usable_mib = self.memory_total_mib - self.reserved_memory_mib
        return usable_mib * self.memory_overcommit - self.memory_claimed_mib

    def disk_free_gib(self, pool: str) -> float:
        """GiB of a pool that may still be claimed, over-commit included, the reserve kept.

        What is claimed in another pool on the same file system is gone here as well.
        """
        total_gib = int((self.pools.get(pool) or {}).get("total_gib", self.disk_total_gib))
        usable_gib = total_gib - self.reserved_disk_gib
        claimed_gib = self.disk_claimed_gib_by_pool
        taken_gib = sum(claimed_gib.get(each, 0) for each in self.list_pools_beside(pool))
        return usable_gib * self.disk_overcommit - taken_gib

    def list_pools_beside(self, pool: str) -> tuple[str, ...]:
        """Return the pools on a pool's file system, itself among them.

        The workers of earlier releases did not tell of file systems: such a pool stands alone.
        """
        own = (self.pools.get(pool) or {}).get("file_system")
        if own is None:
            return (pool,)
        told = self.pools.items()
        return tuple(name for name, each in told if (each or {}).get("file_system") == own)

    def group_pools(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """Return names of pools, those together that are on one file system, in their order."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            groups.setdefault(self.list_pools_beside(name), []).append(name)
        return [tuple(group) for group in groups.values()]


_SNAPSHOT = """
    SELECT h.name, h.is_enabled,
           COALESCE(h.heartbeat_at > clock_timestamp() - make_interval(secs => :up_s), false)
               AS is_up,
           h.disabled_reason, h.vcpus_total, h.memory_total_mib, h.disk_total_gib,
           h.reserved_vcpus, h.reserved_memory_mib, h.reserved_disk_gib,
           h.cpu_overcommit, h.memory_overcommit, h.disk_overcommit,
           h.pools, COALESCE(c.vcpus, 0)::int, COALESCE(c.memory_mib, 0)::int,
           COALESCE(d.disk_gib, 0)::int, COALESCE(d.by_pool, '{}'::jsonb),
           COALESCE(c.instances, 0)::int
      FROM hosts h
      LEFT JOIN (SELECT host, sum(vcpus) AS vcpus, sum(memory_mib) AS memory_mib,
                        count(*) AS instances
                   FROM claims GROUP BY host) c ON c.host = h.name
      LEFT JOIN (SELECT host, sum(disk_gib) AS disk_gib, jsonb_object_agg(pool, disk_gib) AS by_pool
                   FROM (SELECT host, pool, sum(disk_gib) AS disk_gib
                           FROM (SELECT host, pool, disk_gib FROM claims
                                 UNION ALL
                                 SELECT own.host, other.key, other.value::int
                                   FROM claims own, jsonb_each_text(own.elsewhere_gib) other
                                  WHERE own.elsewhere_gib <> '{}') parts
                          GROUP BY host, pool) in_pools
                  GROUP BY host) d ON d.host = h.name
"""


def list_host_snapshots(session: Session) -> list[HostSnapshot]:
    """Read every host with the sums of its claims, in one statement, ordered by name."""
    rows = session.execute(text(_SNAPSHOT + " ORDER BY h.name"), {"up_s": HOST_IS_UP_S})
    return [HostSnapshot(*row) for row in rows]


def lock_host_snapshot(session: Session, name: str) -> HostSnapshot | None:
    """Lock a host's row and read it anew; claims on it wait for this transaction's end."""
    # The weaker lock: whoever only refers to the host by a foreign key need not wait.
    locked = session.execute(
        select(Host.name).where(Host.name == name).with_for_update(key_share=True)
    ).scalar()
    if locked is None:
        return None
    row = session.execute(
        text(_SNAPSHOT + " WHERE h.name = :name"), {"up_s": HOST_IS_UP_S, "name": name}
    ).one()
    return HostSnapshot(*row)


def insert_claim(
    session: Session,
    *,
    host: str,
    instance_id: UUID,
    operation_id: UUID,
    pool: str,
    sizes: dict[str, int],
    elsewhere_gib: Mapping[str, int] | None = None,
) -> None:
    """Claim a host's resources for a guest; the host's row must be locked and found to fit.

    A claim that the guest has on the host already is taken over by the operation.

    Args:
        session: an open transaction.
        host: the host.
        instance_id: the guest.
        operation_id: the operation that holds it.
        pool: the guest's own pool.
        sizes: the claim's ``vcpus``, ``memory_mib``, and ``disk_gib`` in that pool.
        elsewhere_gib: GiB of its disks in each other pool; None for none.
    """
    values = {
        "operation_id": operation_id,
        "pool": pool,
        "elsewhere_gib": dict(elsewhere_gib or {}),
        **sizes,
    }
    session.execute(
        insert(Claim)
        .values(host=host, instance_id=instance_id, **values)
        .on_conflict_do_update(index_elements=["instance_id", "host"], set_=values)
    )


def split_by_pool(disk_gib: Mapping[str, int], pool: str) -> tuple[int, dict[str, int]]:
    """Return the GiB in a claim's own pool, and by pool those elsewhere, as a claim has them."""
    elsewhere_gib = {name: gib for name, gib in disk_gib.items() if name != pool}
    return disk_gib.get(pool, 0), elsewhere_gib


def release_claim(session: Session, *, host: str, instance_id: UUID) -> None:
    """Give a guest's claim on a host back; nothing happens when it has none."""
    session.execute(delete(Claim).where(Claim.host == host, Claim.instance_id == instance_id))


def heal_claims(session: Session, *, host: str) -> list[UUID]:
    """Remove claims of guests that neither live on the host nor are on their way.

    Returns:
        The instances whose claims had drifted, for the report.
    """
    living = select(Instance.id).where(
        Instance.id == Claim.instance_id,
        (Instance.operation_id.is_not(None))
        # Nobody knows yet on which of its hosts such a guest is.
        | (Instance.state == InstanceState.UNKNOWN)
        | ((Instance.host == Claim.host) & (Instance.state != InstanceState.DELETED)),
    )
    rows = session.scalars(
        delete(Claim)
        .where(
            Claim.host == host,
            ~living.exists(),
            # A claim is made in the same transaction that takes the guest; only settled ones heal.
            Claim.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 1),
        )
        .returning(Claim.instance_id)
    )
    return list(rows)


def move_placement(
    session: Session, *, instance_id: UUID, src: str, dst: str, domain_epoch: int
) -> None:
    """Flip where a guest is and hand its source's claim back: a migration's commit point.

    Args:
        session: an open transaction.
        instance_id: the guest.
        src: where the record has it.
        dst: where it is from now on.
        domain_epoch: the epoch in the metadata of the domain on ``dst``; also that of the
            operation that holds the guest.

    Raises:
        LeaseLost: the record says something else by now; nothing was changed.
    """
    moved = session.execute(
        update(Instance)
        .where(Instance.id == instance_id, Instance.host == src, Instance.epoch == domain_epoch)
        .values(host=dst, domain_epoch=domain_epoch)
        .returning(Instance.id)
    ).scalar_one_or_none()
    if moved is None:
        raise LeaseLost(
            f"The record of instance {instance_id} has changed since; it is not on {src}.",
            {"src": src, "dst": dst, "domain_epoch": domain_epoch},
        )
    release_claim(session, host=src, instance_id=instance_id)
