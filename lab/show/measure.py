"""Times and their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def timed(act: Callable[[], Any]) -> float:
    """Return how long an act takes, in ms."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def spread(values_ms: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, in ms."""
    ordered = sorted(values_ms)
    rank = max(0, min(len(ordered) - 1, round(0.95 * len(ordered)) - 1))
    return {"p50": round(statistics.median(ordered), 1), "p95": round(ordered[rank], 1)}
