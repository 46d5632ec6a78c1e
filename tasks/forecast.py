"""Will a migration end, when, and how long will the guest stand still? Pure arithmetic.

Pre-copy sends the memory in rounds; each round sends what the guest wrote during the last. With a
guest that writes D bytes/s over a link of B bytes/s, each round is D/B of the one before, so the
rounds only shrink where D < B (Clark et al., NSDI 2005).
"""

import math
from dataclasses import dataclass

MIB = 2**20
# A round that is shorter than this is sent in no time that a person would notice.
MOST_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a migration.

    Args:
        will_converge: whether pre-copy alone comes to an end within the limits.
        total_s: how long it takes, or the limit's time where it does not end.
        downtime_ms: how long the guest stands still at the switch-over.
        rounds: passes over the memory.
        moved_bytes: what crosses the link.
        why: one sentence with the figures.
    """

    will_converge: bool
    total_s: float
    downtime_ms: float
    rounds: int
    moved_bytes: int
    why: str


def forecast(
    *,
    memory_bytes: int,
    disk_bytes: int = 0,
    link_bytes_s: float,
    dirty_bytes_s: float,
    max_downtime_ms: float,
    deadline_s: float,
) -> Forecast:
    """Predict a migration from its figures.

    Args:
        memory_bytes: what the guest uses of its memory.
        disk_bytes: what must be copied of its disks, before the memory.
        link_bytes_s: what the link carries, its cap included; above 0.
        dirty_bytes_s: how fast the guest writes its memory, each page counted once.
        max_downtime_ms: the longest pause allowed.
        deadline_s: the longest total allowed.
    """
    fits_bytes = link_bytes_s * max_downtime_ms / 1000
    seconds = disk_bytes / link_bytes_s
    left, moved, rounds = float(memory_bytes), float(disk_bytes), 0
    while left > fits_bytes and rounds < MOST_ROUNDS and seconds <= deadline_s:
        took_s = left / link_bytes_s
        seconds, moved, rounds = seconds + took_s, moved + left, rounds + 1
        # No guest dirties more than it has.
        left = min(dirty_bytes_s * took_s, float(memory_bytes))
    downtime_ms = left / link_bytes_s * 1000
    rates = (
        f"the guest dirties {dirty_bytes_s / MIB:.0f} MiB/s, the link carries"
        f" {link_bytes_s / MIB:.0f} MiB/s"
    )
    if left > fits_bytes and dirty_bytes_s >= link_bytes_s:
        why = f"Will not converge: {rates}."
    elif left > fits_bytes or seconds > deadline_s:
        why = f"Will not end within {deadline_s:.0f} s: {rates}."
    else:
        seconds, moved = seconds + downtime_ms / 1000, moved + left
        why = f"About {seconds:.1f} s with {downtime_ms:.0f} ms of downtime: {rates}."
        return Forecast(True, seconds, downtime_ms, rounds + 1, int(moved), why)
    return Forecast(False, deadline_s, downtime_ms, rounds, int(moved), why)


def estimate_left_s(
    *, remaining_bytes: int, link_bytes_s: float, dirty_bytes_s: float, max_downtime_ms: float
) -> float | None:
    """Return how much longer pre-copy takes from here; None where it does not end.

    Args:
        remaining_bytes: of this round.
        link_bytes_s: as measured; 0 when nothing has been measured.
        dirty_bytes_s: as measured.
        max_downtime_ms: the longest pause allowed now.
    """
    if link_bytes_s <= 0:
        return None
    told = forecast(
        memory_bytes=remaining_bytes,
        link_bytes_s=link_bytes_s,
        dirty_bytes_s=dirty_bytes_s,
        max_downtime_ms=max_downtime_ms,
        deadline_s=math.inf,
    )
    return told.total_s if told.will_converge else None
