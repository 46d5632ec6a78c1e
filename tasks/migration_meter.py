"""A running migration in figures and in words: how far it is, how fast, and for how long still."""

from dataclasses import dataclass

from tasks.convergence import Figures
from tasks.forecast import MIB, estimate_left_s
from virt.views import JobStats

# The last hundredth is the switch-over, which libvirt gives no figures of.
MOST_SHOWN = 0.99


@dataclass(frozen=True, slots=True)
class Reading:
    """What is shown of one look.

    Args:
        fraction: 0…0.99, never less than in the look before.
        text: one line for people.
        eta_s: how much longer; None for unknown, or for ever.
    """

    fraction: float
    text: str
    eta_s: float | None


class Meter:
    """Turns libvirt's figures into progress that never goes back.

    Args:
        memory_bytes: the guest's memory, which libvirt does not tell while it copies disks.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._fraction = 0.0

    def read(self, stats: JobStats | None, *, max_downtime_ms: int) -> Reading:
        """Return what to show.

        Args:
            stats: what libvirt says now; None when it says nothing.
            max_downtime_ms: the longest pause allowed.
        """
        if stats is None:
            return Reading(self._fraction, "the destination gets ready", None)
        self._fraction = max(self._fraction, done_share(stats, self._memory_bytes))
        left_s = self._estimate_left_s(stats, max_downtime_ms)
        return Reading(self._fraction, describe(stats, left_s), left_s)

    def _estimate_left_s(self, stats: JobStats, max_downtime_ms: int) -> float | None:
        if stats.phase == "disks":
            if not stats.disk_bytes_s:
                return None
            return (stats.disk_remaining_bytes + self._memory_bytes) / stats.disk_bytes_s
        return estimate_left_s(
            remaining_bytes=stats.memory_remaining_bytes,
            link_bytes_s=float(stats.memory_bytes_s),
            # In post-copy what the guest writes stays where it is.
            dirty_bytes_s=0.0 if stats.phase == "postcopy" else float(stats.memory_dirty_bytes_s),
            max_downtime_ms=max_downtime_ms,
        )


def read_figures(stats: JobStats | None, *, elapsed_s: float) -> Figures:
    """Return what the schedule judges by; without figures only the time counts.

    Args:
        stats: what libvirt says now; None when it says nothing.
        elapsed_s: since this attempt began; the job's own time, when longer, is the truth.
    """
    if stats is None:
        return Figures(elapsed_s)
    return Figures(
        elapsed_s=max(elapsed_s, stats.time_elapsed_ms / 1000),
        iteration=stats.memory_iteration,
        remaining_bytes=stats.memory_remaining_bytes,
        link_bytes_s=float(stats.memory_bytes_s),
        dirty_bytes_s=float(stats.memory_dirty_bytes_s),
        throttle_percent=stats.throttle_percent,
    )


def done_share(stats: JobStats, memory_bytes: int) -> float:
    """Return how much of the guest is on the other side, 0…0.99.

    Args:
        stats: what libvirt says now.
        memory_bytes: the guest's memory, which libvirt does not tell while it copies disks.
    """
    total = stats.disk_total_bytes + memory_bytes
    moved = stats.disk_processed_bytes
    if stats.memory_total_bytes:
        moved += max(stats.memory_total_bytes - stats.memory_remaining_bytes, 0)
    return min(moved / total, MOST_SHOWN) if total else 0.0


def describe(stats: JobStats, left_s: float | None) -> str:
    """Return one line for people."""
    more = "" if left_s is None else f", about {left_s:.0f} s more"
    if stats.phase == "disks":
        done, total = stats.disk_processed_bytes / MIB, stats.disk_total_bytes / MIB
        return f"disks: {done:.0f} of {total:.0f} MiB, {stats.disk_bytes_s / MIB:.0f} MiB/s{more}"
    if stats.phase == "postcopy":
        return (
            "post-copy, the guest runs on the destination:"
            f" {stats.memory_remaining_bytes / MIB:.0f} MiB to follow,"
            f" {stats.memory_bytes_s / MIB:.0f} MiB/s{more}"
        )
    if not stats.memory_total_bytes:
        return "the destination gets ready"
    text = (
        f"memory, pass {stats.memory_iteration}: {stats.memory_remaining_bytes / MIB:.0f} of"
        f" {stats.memory_total_bytes / MIB:.0f} MiB left, {stats.memory_bytes_s / MIB:.0f} MiB/s"
    )
    if stats.memory_dirty_bytes_s:
        text += f", dirties {stats.memory_dirty_bytes_s / MIB:.0f} MiB/s"
    if stats.throttle_percent:
        text += f", slowed by {stats.throttle_percent} %"
    if left_s is not None:
        return text + more
    return f"{text}, will not converge so" if stats.memory_iteration > 1 else text
