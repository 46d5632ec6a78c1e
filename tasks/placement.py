"""Where a guest may go: filters and weights, pure functions of snapshots."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from innkeeper.errors import NoHostFits
from models.claims import HostSnapshot


@dataclass(frozen=True, slots=True)
class Demand:
    """What a guest needs of a host."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    pool: str


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
    """Refuse hosts that lack the storage pool."""
    if demand.pool in host.pools:
        return None
    return f"{host.name} has no storage pool {demand.pool!r}."


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
    """Refuse hosts without enough disk, over-commit included."""
    if demand.disk_gib <= host.disk_free_gib:
        return None
    return (
        f"{host.name} has {host.disk_free_gib:.0f} GiB of disk free, "
        f"{demand.disk_gib} GiB are needed."
    )


FILTERS: tuple[tuple[str, Filter], ...] = (
    ("host_down", refuse_down),
    ("host_disabled", refuse_disabled),
    ("no_pool", refuse_without_pool),
    ("cpu", refuse_short_of_cpu),
    ("memory", refuse_short_of_memory),
    ("disk", refuse_short_of_disk),
)


def list_refusals(host: HostSnapshot, demand: Demand) -> list[Refusal]:
    """Return every reason against a host; none means that it fits."""
    found = ((code, check(host, demand)) for code, check in FILTERS)
    return [Refusal(host.name, code, message) for code, message in found if message is not None]


def weigh(host: HostSnapshot) -> tuple[float, float, str]:
    """Return a sort key: hosts with the largest free share of memory, then of CPU, come first.

    The name breaks ties so that the same snapshot always gives the same order.
    """
    memory_share = host.memory_free_mib / max(host.memory_total_mib, 1)
    cpu_share = host.vcpus_free / max(host.vcpus_total, 1)
    return (-round(memory_share, 3), -round(cpu_share, 3), host.name)


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
    return [host.name for host in sorted(fitting, key=weigh)], refusals


def no_host_fits(what: str, refusals: list[Refusal]) -> NoHostFits:
    """Return the error that names every refusal."""
    reasons = " ".join(refusal.message for refusal in refusals) or "There are no hosts."
    return NoHostFits(
        f"No host fits {what}. {reasons}",
        {"refusals": [refusal.to_wire() for refusal in refusals]},
    )
