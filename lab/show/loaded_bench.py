"""Migrations of a guest that writes its memory: Innkeeper and bare libvirt in turn."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from innkeeper import Innkeeper
from lab.handle import Lab
from lab.show.bare import BareMigration
from lab.show.guest_load import GuestLoad
from lab.show.measure import spread

_NAME = "loaded"


@dataclass(frozen=True)
class Load:
    """What a guest does while it moves: rewrite so much memory so fast; and what the link carries.

    Args:
        rate_mib_s: how fast it writes.
        size_mib: how much memory, over and over.
        link_mib_s: the bandwidth that either migration may take; 0 for all.
    """

    rate_mib_s: int
    size_mib: int
    link_mib_s: int


def linux_guest(lab: Lab) -> dict[str, Any]:
    """Return the fields of a Linux guest on shared storage whose agent answers."""
    env = lab.env()
    return {
        "image": env["INNKEEPER_LAB_IMAGE"],
        "sha256": env["INNKEEPER_LAB_IMAGE_SHA256"],
        "memory_mib": 256,
        "wait": "agent",
        "pool": "shared",
    }


@dataclass
class Runs:
    """What was measured of migrations of one kind, in ms, one figure for each."""

    total: list[float] = field(default_factory=list)
    job: list[float] = field(default_factory=list)
    downtime: list[float] = field(default_factory=list)
    handover: list[float] = field(default_factory=list)

    def spread(self) -> dict[str, dict[str, float]]:
        """Return the spread of everything that was measured."""
        return {name: spread(values) for name, values in vars(self).items() if values}

    def to_json(self) -> dict[str, list[float]]:
        """Return every figure."""
        return {name: [round(v, 1) for v in values] for name, values in vars(self).items()}


class Mover:
    """Moves Innkeeper's guest and libvirt's in turn, both under the same load all the time.

    Args:
        lab: two hosts.
        client: of the lab.
        load: what both do.
    """

    def __init__(self, lab: Lab, client: Innkeeper, load: Load) -> None:
        self._client, self._load = client, load
        a, b = lab.hosts[:2]
        client.spawn(name=_NAME, host=a, **linux_guest(lab)).wait(240)
        self._bare = BareMigration(lab, a, b, template=_NAME)
        self._at, self._to = a, b
        for name in (_NAME, self._bare.name):
            guest = GuestLoad(lab, name)
            guest.await_agent(a)
            guest.start(a, rate_mib_s=load.rate_mib_s, size_mib=load.size_mib)

    def move_ours(self, handover: str, runs: Runs) -> None:
        """Have Innkeeper move its guest."""
        started = time.perf_counter()
        result = self._client.migrate(
            _NAME, dst=self._to, handover=handover, bandwidth_mib_s=self._load.link_mib_s
        ).wait(600)
        runs.total.append((time.perf_counter() - started) * 1000)
        self._at, self._to = self._to, self._at
        runs.job.append(float(result["total_ms"]))
        runs.downtime.append(float(result["downtime_ms"]))
        runs.handover.append(float(result["handover_ms"] or 0))

    def move_bare(self, runs: Runs) -> None:
        """Have libvirt alone move the twin."""
        total_ms, downtime_ms = self._bare.run_once(link_mib_s=self._load.link_mib_s)
        runs.total.append(total_ms)
        runs.downtime.append(downtime_ms)

    def close(self) -> None:
        """Remove both guests."""
        self._bare.close()
        self._client.delete(_NAME).wait(120)


def measure_loaded_migration(
    lab: Lab, client: Innkeeper, rounds: int, load: Load
) -> dict[str, Any]:
    """Move a guest under load by either hand-over, and a twin by libvirt alone, in turn.

    Args:
        lab: two hosts.
        client: of the lab.
        rounds: migrations of each kind.
        load: what both do all the time.
    """
    mover = Mover(lab, client, load)
    # One of each beforehand: the first one starts libvirtd's own threads and warms caches.
    for number in range(-1, rounds):
        if number <= 0:
            safe, fast, bare = Runs(), Runs(), Runs()
        mover.move_ours("safe", safe)
        mover.move_bare(bare)
        mover.move_ours("fast", fast)
    mover.close()
    return _report(rounds, load, safe, fast, bare)


def _report(rounds: int, load: Load, safe: Runs, fast: Runs, bare: Runs) -> dict[str, Any]:
    ours, swift, theirs = safe.spread(), fast.spread(), bare.spread()
    ranks = ("p50", "p95")
    # Beside what the safe hand-over costs, a guest's owner may notice a fifth more, and 10 ms.
    allowed_ms = {rank: round(1.2 * theirs["downtime"][rank] + 10, 1) for rank in ranks}
    switch_over = [all_ - after for all_, after in zip(safe.downtime, safe.handover, strict=True)]
    return {
        "rounds": rounds,
        "load": asdict(load),
        "safe_ms": ours,
        "fast_ms": swift,
        "libvirt_ms": theirs,
        "total_ratio": {
            kind: {rank: round(of["total"][rank] / theirs["total"][rank], 3) for rank in ranks}
            for kind, of in (("safe", ours), ("fast", swift))
        },
        "downtime_allowed_ms": allowed_ms,
        "downtime_ms": {
            "safe": ours["downtime"],
            "safe_without_handover": spread(switch_over),
            "fast": swift["downtime"],
            "libvirt": theirs["downtime"],
        },
        "safe_handover_ms": ours["handover"],
        "single": {"safe": safe.to_json(), "fast": fast.to_json(), "libvirt": bare.to_json()},
    }
