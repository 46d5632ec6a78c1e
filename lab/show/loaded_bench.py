"""Migrations of a guest that writes its memory: Innkeeper and bare libvirt in turn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from innkeeper import Innkeeper
from lab.handle import Lab
from lab.show.bare import BareMigration
from lab.show.guest_load import GuestLoad
from lab.show.measure import spread

_NAME = "loaded"


@dataclass(frozen=True)
class Load:
    """What a guest does while it moves: rewrite so much memory so fast."""

    rate_mib_s: int
    size_mib: int


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


def measure_loaded_migration(lab: Lab, client: Innkeeper, pairs: int, load: Load) -> dict[str, Any]:
    """Move a guest under load, alternating with a twin under the same load moved by libvirt alone.

    Only the one that moves is under load, so neither is in the other's way.

    Args:
        lab: two hosts.
        client: of the lab.
        pairs: migrations of each kind.
        load: what both do.
    """
    a, b = lab.hosts[:2]
    client.spawn(name=_NAME, host=a, **linux_guest(lab)).wait(240)
    bare = BareMigration(lab, a, b, template=_NAME)
    ours_load, bare_load = GuestLoad(lab, _NAME), GuestLoad(lab, bare.name)
    bare_load.await_agent(a)
    ours: dict[str, list[float]] = {"total": [], "job": [], "downtime": [], "handover": []}
    theirs: dict[str, list[float]] = {"total": [], "downtime": []}
    at, to = a, b
    # One of each beforehand: the first one starts libvirtd's own threads and warms caches.
    for number in range(-1, pairs):
        ours_load.start(at, rate_mib_s=load.rate_mib_s, size_mib=load.size_mib)
        started = time.perf_counter()
        result = client.migrate(_NAME, dst=to).wait(600)
        total_ms = (time.perf_counter() - started) * 1000
        ours_load.stop(to)
        bare_load.start(at, rate_mib_s=load.rate_mib_s, size_mib=load.size_mib)
        bare_total_ms, bare_downtime_ms = bare.run_once()
        bare_load.stop(to)
        at, to = to, at
        if number < 0:
            continue
        ours["total"].append(total_ms)
        ours["job"].append(float(result["total_ms"]))
        ours["downtime"].append(float(result["downtime_ms"]))
        ours["handover"].append(float(result["handover_ms"]))
        theirs["total"].append(bare_total_ms)
        theirs["downtime"].append(bare_downtime_ms)
    bare.close()
    client.delete(_NAME).wait(120)
    return _report(pairs, load, ours, theirs)


def _report(
    pairs: int, load: Load, ours: dict[str, list[float]], theirs: dict[str, list[float]]
) -> dict[str, Any]:
    our = {name: spread(values) for name, values in ours.items()}
    their = {name: spread(values) for name, values in theirs.items()}
    # What the guest's owner notices may be a fifth longer, and ten milliseconds.
    allowed_ms = {rank: 1.2 * their["downtime"][rank] + 10 for rank in ("p50", "p95")}
    return {
        "pairs": pairs,
        "load": {"rate_mib_s": load.rate_mib_s, "size_mib": load.size_mib},
        "innkeeper_ms": our["total"],
        "innkeeper_job_ms": our["job"],
        "libvirt_ms": their["total"],
        "total_ratio": {
            rank: round(our["total"][rank] / their["total"][rank], 3) for rank in ("p50", "p95")
        },
        "innkeeper_downtime_ms": our["downtime"],
        "libvirt_downtime_ms": their["downtime"],
        "downtime_allowed_ms": {rank: round(limit, 1) for rank, limit in allowed_ms.items()},
        "handover_ms": our["handover"],
        "single": {
            "innkeeper": {name: [round(v, 1) for v in values] for name, values in ours.items()},
            "libvirt": {name: [round(v, 1) for v in values] for name, values in theirs.items()},
        },
    }
