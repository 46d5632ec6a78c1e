"""Which faults strike when, drawn from the seed alone."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.catalogue import WORKFLOWS
from tasks.crashpoints import list_points
from tasks.requests import ACCEPT
from tests.chaos.faults.catalogue import list_faults
from tests.chaos.faults.fault import Fault, family_of
from tests.chaos.faults.guest_fault import GuestKilled
from tests.chaos.faults.process_faults import Killed, QemuKilled

SHORTEST_S, LONGEST_S = 0.5, 10.0

# Family (a fault's name up to the colon) → how often, and what of the lab it takes away.
FAMILIES: dict[str, tuple[int, str]] = {
    "redis_killed_and_emptied": (2, "redis"),
    "redis_flushed": (3, "redis"),
    "redis_stopped": (1, "redis"),
    "redis_refuses_writes": (2, "redis"),
    "postgres_restarted": (1, "postgres"),
    "postgres_killed": (2, "postgres"),
    "postgres_connections_terminated": (3, "postgres"),
    "messages_doubled": (2, "messages"),
    "messages_dropped": (2, "messages"),
    "messages_delayed": (2, "messages"),
    "two_beats": (1, "beat"),
    "two_sweepers": (1, "sweep"),
    "control_killed": (3, "control"),
    "control_frozen": (1, "control"),
    "beat_killed": (1, "beat"),
    "libvirtd_killed": (4, "host"),
    "qemu_killed": (4, "guest"),
    "worker_killed": (6, "host"),
    "worker_frozen": (2, "host"),
    "clock_skewed": (1, "host"),
    "network_cut": (3, "network"),
    "finish_reply_lost": (1, "network"),
}


@dataclass(frozen=True, slots=True)
class Strike:
    """One or two faults at a time.

    Args:
        pause_s: time before it.
        faults: strike one after the other, at once.
        hold_s: how long they stand before they are mended.
    """

    pause_s: float
    faults: tuple[Fault, ...]
    hold_s: float


@dataclass(frozen=True, slots=True)
class Trap:
    """Crash points that are armed together; whoever comes to one dies there.

    Args:
        points: their names.
        patience_s: how long they stay armed.
        restart_after_s: how long the dead stay dead.
    """

    points: tuple[str, ...]
    patience_s: float
    restart_after_s: float


def draw_strikes(
    seed: str, hosts: Sequence[str], guests: Sequence[str], *, lease_s: float
) -> Iterator[Strike]:
    """Yield strikes without end, the same for the same seed."""
    draw = random.Random(f"{seed} strikes")
    by_family: dict[str, list[Fault]] = {}
    for fault in list_faults(hosts, lease_s=lease_s):
        if not isinstance(fault, QemuKilled):
            by_family.setdefault(family_of(fault), []).append(fault)
    by_family["qemu_killed"] = [
        GuestKilled(guest, order)
        for guest in guests
        for order in (tuple(hosts), tuple(reversed(hosts)))
    ]
    families = sorted(by_family)
    weights = [FAMILIES[name][0] for name in families]
    while True:
        family, other = draw.choices(families, weights, k=2)
        faults = [draw.choice(by_family[family])]
        second = draw.choice(by_family[other])
        if draw.random() < 0.2 and FAMILIES[family][1] != FAMILIES[other][1]:
            faults.append(second)
        shortest_s = max(_shortest_s(fault) for fault in faults)
        hold_s = round(draw.uniform(SHORTEST_S, LONGEST_S), 2)
        # Half of the killed are started at once: that is what recovery is measured by.
        if draw.random() < 0.5 and all(isinstance(fault, Killed) for fault in faults):
            hold_s = 0.0
        yield Strike(round(draw.uniform(0.2, 4.0), 2), tuple(faults), max(hold_s, shortest_s))


def _shortest_s(fault: Fault) -> float:
    """Return what a fault needs to be felt at all, such as a frozen worker's lease."""
    return fault.lasts_s if family_of(fault) in ("worker_frozen", "finish_reply_lost") else 0.0


def draw_traps(seed: str) -> Iterator[Trap]:
    """Yield crash points without end, the same for the same seed."""
    draw = random.Random(f"{seed} traps")
    by_kind: dict[str, list[str]] = {}
    for point in list_points(WORKFLOWS, ACCEPT):
        by_kind.setdefault(point.kind, []).append(point.name)
    kinds = sorted(by_kind)
    weights = [4 if kind in ("spawn", "live_migrate") else 1 for kind in kinds]
    while True:
        chosen = draw.choices(kinds, weights, k=4)
        yield Trap(
            tuple(dict.fromkeys(draw.choice(by_kind[kind]) for kind in chosen)),
            patience_s=12.0,
            restart_after_s=0.0 if draw.random() < 0.5 else round(draw.uniform(0.5, 8.0), 2),
        )
