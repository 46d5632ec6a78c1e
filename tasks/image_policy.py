"""Which cached images go: pure, so that a table can say what happens.

Never one that is held, never one that was used a moment ago. First what nobody has used for long,
then, oldest use first, as much as it takes to be within the quota and to leave the disk its room.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """What an image cache may take.

    Args:
        max_bytes: quota of each pool's cache; 0 for none.
        min_free_bytes: room that is left on the pool's file system; 0 for none.
        min_age_s: nothing is removed that was used within this time.
        max_age_s: what nobody has used for so long is removed, whatever room there is; 0 for never.
    """

    max_bytes: int = 0
    min_free_bytes: int = 0
    min_age_s: float = 3600.0
    max_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One copy as the policy sees it.

    Args:
        sha256: the image.
        size_bytes: what its file takes on the disk.
        idle_s: how long nobody has used it.
        is_held: whether a guest or an operation needs it.
    """

    sha256: str
    size_bytes: int
    idle_s: float
    is_held: bool


@dataclass(frozen=True, slots=True)
class Eviction:
    """What goes, and why, in words for people."""

    sha256: str
    why: str


def choose_evictions(
    copies: Iterable[Candidate], limits: CacheLimits, *, free_bytes: int
) -> list[Eviction]:
    """Choose what to remove, in the order in which to remove it.

    Args:
        copies: everything in one pool's cache.
        limits: what it may take.
        free_bytes: what is free on the pool's file system.
    """
    longest_idle_first = sorted(copies, key=lambda copy: (-copy.idle_s, copy.sha256))
    used_bytes = sum(copy.size_bytes for copy in longest_idle_first)
    evictions = []
    for copy in longest_idle_first:
        if copy.is_held or copy.idle_s < limits.min_age_s:
            continue
        why = _why(copy, limits, used_bytes=used_bytes, free_bytes=free_bytes)
        if why is None:
            continue
        evictions.append(Eviction(copy.sha256, why))
        used_bytes -= copy.size_bytes
        free_bytes += copy.size_bytes
    return evictions


def _why(copy: Candidate, limits: CacheLimits, *, used_bytes: int, free_bytes: int) -> str | None:
    if limits.max_age_s and copy.idle_s >= limits.max_age_s:
        return f"nobody has used it for {copy.idle_s / 86400:.1f} days"
    if limits.max_bytes and used_bytes > limits.max_bytes:
        return f"the cache takes {_mib(used_bytes)}, its quota is {_mib(limits.max_bytes)}"
    if free_bytes < limits.min_free_bytes:
        return f"the disk has {_mib(free_bytes)} free, {_mib(limits.min_free_bytes)} are to be left"
    return None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
