"""Where a guest may go: filters and weights, pure functions of snapshots."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from innkeeper.errors import NoHostFits
from models.claims import HostSnapshot
from models.server_groups import GroupStand
from tasks.disk_plan import name_together


@dataclass(frozen=True, slots=True)
class Demand:
    """What a guest needs of a host.

    Args:
        vcpus: virtual CPUs.
        memory_mib: MiB of memory.
        disk_gib: GiB that its disks may grow to in each pool; no pool that it needs is left out.
        group: its server group; None for none.
        may_split_group: whether an affinity group only draws, and does not bind.
        image_on: hosts that have its image in the cache of its own pool.
        pool_ids: the directories that pools must be; those not named may be any.
    """

    vcpus: int
    memory_mib: int
    disk_gib: Mapping[str, int]
    group: GroupStand | None = None
    may_split_group: bool = False
    image_on: frozenset[str] = frozenset()
    pool_ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a host was not taken."""

    host: str
    code: str
    message: str

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"host": self.host, "code": self.code, "message": self.message}


Filter = Callable[[HostSnapshot, Demand], str | None]


def refuse_down(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts whose worker has not been heard of lately."""
    del demand
    return None if host.is_up else f"{host.name} is down: its worker's heartbeat is old."


def refuse_disabled(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts that are switched off for new guests."""
    del demand
    if host.is_enabled:
        return None
    return f"{host.name} is disabled: {host.disabled_reason or 'no reason given'}."


def refuse_without_pool(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts that lack a storage pool, or have another directory under its name."""
    problems = []
    for pool in demand.disk_gib:
        if pool not in host.pools:
            problems.append(f"{host.name} has no storage pool {pool!r}.")
            continue
        known = (host.pools[pool] or {}).get("id")
        if demand.pool_ids.get(pool) not in (None, known):
            problems.append(f"{host.name} does not share the storage pool {pool!r}.")
    return " ".join(problems) or None


def refuse_short_of_cpu(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts without enough virtual CPUs, over-commit included."""
    if demand.vcpus <= host.vcpus_free:
        return None
    return f"{host.name} has {host.vcpus_free:.0f} vCPU free, {demand.vcpus} are needed."


def refuse_short_of_memory(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts without enough memory, reserve and over-commit included."""
    if demand.memory_mib <= host.memory_free_mib:
        return None
    return (
        f"{host.name} has {host.memory_free_mib:.0f} MiB of memory free, "
        f"{demand.memory_mib} MiB are needed."
    )


def refuse_short_of_disk(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts of which a file system has not enough disk, reserve and over-commit included.

    Pools on one file system have its room together.
    """
    problems = []
    for pools in host.group_pools(pool for pool in demand.disk_gib if pool in host.pools):
        free_gib = host.disk_free_gib(pools[0])
        wanted_gib = sum(demand.disk_gib[pool] for pool in pools)
        if wanted_gib > free_gib:
            problems.append(
                f"{host.name} has {free_gib:.0f} GiB of disk free in {name_together(pools)}, "
                f"{wanted_gib} GiB are needed."
            )
    return " ".join(problems) or None


def refuse_by_group(host: HostSnapshot, demand: Demand) -> str | None:
    """Refuse hosts that the rule of the guest's server group rules out."""
    group = demand.group
    if group is None or not group.others:
        return None
    is_here = host.name in group.others
    if group.policy == "anti_affinity" and is_here:
        return f"{host.name} has a member of the anti-affinity group {group.name!r} already."
    if group.policy == "affinity" and not is_here and not demand.may_split_group:
        places = " and ".join(sorted(group.others))
        return (
            f"{host.name} has no member of the affinity group {group.name!r}: they are on {places}."
        )
    return None


FILTERS: tuple[tuple[str, Filter], ...] = (
    ("host_down", refuse_down),
    ("host_disabled", refuse_disabled),
    ("no_pool", refuse_without_pool),
    ("cpu", refuse_short_of_cpu),
    ("memory", refuse_short_of_memory),
    ("disk", refuse_short_of_disk),
    ("group", refuse_by_group),
)


def list_refusals(host: HostSnapshot, demand: Demand) -> list[Refusal]:
    """Return every reason against a host; none means that it fits."""
    found = ((code, check(host, demand)) for code, check in FILTERS)
    return [Refusal(host.name, code, message) for code, message in found if message is not None]


def weigh(host: HostSnapshot, demand: Demand) -> tuple[int, float, bool, float, float, str]:
    """Return a sort key; the host with the smallest comes first.

    In this order: the group's wish, free memory in begun tenths of the host's, whether the image is
    there already, free memory and free CPU as exact shares. The name breaks ties so that the same
    snapshot always gives the same order.
    """
    memory_share = host.memory_free_mib / max(host.memory_total_mib, 1)
    cpu_share = host.vcpus_free / max(host.vcpus_total, 1)
    return (
        _pull_of_group(host, demand),
        -math.ceil(memory_share * 10),
        host.name not in demand.image_on,
        -round(memory_share, 3),
        -round(cpu_share, 3),
        host.name,
    )


def _pull_of_group(host: HostSnapshot, demand: Demand) -> int:
    """How much a group's members push away from the host; negative when they draw towards it."""
    if demand.group is None:
        return 0
    here = demand.group.others.get(host.name, 0)
    return here if demand.group.policy in ("anti_affinity", "soft_anti_affinity") else -here


def rank(
    hosts: Iterable[HostSnapshot], demand: Demand, *, wanted: str | None, ignored: frozenset[str]
) -> tuple[list[str], list[Refusal]]:
    """Rank the hosts that fit, best first.

    Args:
        hosts: every host.
        demand: what is needed.
        wanted: consider only this host.
        ignored: hosts that have failed already, or that the guest must leave.

    Returns:
        Names, best first, and all refusals.
    """
    refusals: list[Refusal] = []
    fitting: list[HostSnapshot] = []
    for host in hosts:
        if wanted is not None and host.name != wanted:
            continue
        if host.name in ignored:
            refusals.append(
                Refusal(host.name, "ignored", f"{host.name} was tried or is the source.")
            )
            continue
        reasons = list_refusals(host, demand)
        refusals.extend(reasons)
        if not reasons:
            fitting.append(host)
    if wanted is not None and not refusals and not fitting:
        refusals.append(Refusal(wanted, "unknown_host", f"There is no host {wanted!r}."))
    ranked = sorted(fitting, key=lambda host: weigh(host, demand))
    return [host.name for host in ranked], refusals


def no_host_fits(what: str, refusals: list[Refusal], *, wanted: str | None = None) -> NoHostFits:
    """Return the error that names every refusal.

    Args:
        what: which guest, for the message.
        refusals: of every host that was considered.
        wanted: the host that was asked for; no other was considered then.
    """
    reasons = " ".join(refusal.message for refusal in refusals) or "There are no hosts."
    details: dict[str, Any] = {"refusals": [refusal.to_wire() for refusal in refusals]}
    if wanted is None:
        return NoHostFits(f"No host fits {what}. {reasons}", details)
    details["hint"] = "Leave the host to the scheduler, or make room there."
    return NoHostFits(
        f"Host {wanted}, which was asked for, does not fit {what}. {reasons}", details
    )
