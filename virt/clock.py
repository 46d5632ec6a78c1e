"""How far this host's clock is from another one that can be asked."""

import time
from collections.abc import Callable

TRIES = 3


def measure_skew_s(ask_s: Callable[[], float]) -> tuple[float, float]:
    """Compare this host's clock with another one.

    Args:
        ask_s: returns the other clock's time, in seconds since 1970.

    Returns:
        How far this host is ahead, in seconds, and by how much that may be wrong.
    """
    best: tuple[float, float] | None = None
    for _ in range(TRIES):
        begun_s, before_s = time.monotonic(), time.time()
        other_s = ask_s()
        doubt_s = (time.monotonic() - begun_s) / 2
        if best is None or doubt_s < best[1]:
            best = (before_s + doubt_s - other_s, doubt_s)
    if best is None:
        raise AssertionError("unreachable")
    return best
