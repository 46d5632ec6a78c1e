"""All faults of the surroundings, by name.

fault = find_fault("worker_killed:hv-a")
with struck(fault, stage):
    time.sleep(fault.lasts_s)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

from lab.network import SERVICES
from tests.chaos.faults.clock_faults import ClockSkewed
from tests.chaos.faults.fault import Fault, MissedError, StageLike, struck
from tests.chaos.faults.network_faults import FinishReplyLost, NetworkCut
from tests.chaos.faults.process_faults import Frozen, Killed, QemuKilled, two_beats, two_sweepers
from tests.chaos.faults.service_faults import (
    PostgresConnectionsTerminated,
    PostgresRestarted,
    RedisFlushed,
    RedisKilledAndEmptied,
    RedisRefusesWrites,
    messages_delayed,
    messages_doubled,
    messages_dropped,
)

__all__ = [
    "ALL_FAULTS",
    "Fault",
    "MissedError",
    "StageLike",
    "find_fault",
    "list_faults",
    "struck",
]

HOURS_AHEAD_S = 2 * 3600
HOURS_BEHIND_S = -5 * 3600
FREEZE_PER_LEASE = 1.6
REDIS_STOP_S = 3.0


def list_faults(
    hosts: Sequence[str], *, lease_s: float, redis_stop_s: float = REDIS_STOP_S
) -> list[Fault]:
    """Return every fault of a lab, in an order that never changes.

    Args:
        hosts: the lab's hosts.
        lease_s: length of a step's lease; a frozen worker is frozen for longer.
        redis_stop_s: how long Redis is stopped.
    """
    freeze_s = lease_s * FREEZE_PER_LEASE
    faults: list[Fault] = [
        RedisKilledAndEmptied(),
        RedisFlushed(),
        Frozen("redis", redis_stop_s, "stopped"),
        RedisRefusesWrites(),
        PostgresRestarted(),
        Killed("postgres"),
        PostgresConnectionsTerminated(),
        messages_doubled(),
        messages_dropped(),
        messages_delayed(),
        two_beats(),
        two_sweepers(),
        Killed("control"),
        Killed("beat"),
        Frozen("control", freeze_s),
    ]
    for host in hosts:
        faults += [
            Killed(f"libvirtd:{host}"),
            QemuKilled(host),
            Killed(f"worker:{host}"),
            Frozen(f"worker:{host}", freeze_s),
            ClockSkewed(host, HOURS_AHEAD_S),
            ClockSkewed(host, HOURS_BEHIND_S),
            NetworkCut(host, SERVICES),
        ]
    faults += [NetworkCut(a, b) for a, b in combinations(hosts, 2)]
    faults += [FinishReplyLost(src, dst) for src, dst in permutations(hosts, 2)]
    return faults


ALL_FAULTS: list[Fault] = list_faults(("hv-a", "hv-b"), lease_s=5.0)
"""Those of the chaos tests' lab."""


def find_fault(name: str, faults: Sequence[Fault] = ALL_FAULTS) -> Fault:
    """Return the fault of this name.

    Raises:
        KeyError: there is none; says which there are.
    """
    for fault in faults:
        if fault.name == name:
            return fault
    raise KeyError(f"no fault {name!r}; there are: {', '.join(f.name for f in faults)}")
