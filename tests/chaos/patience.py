"""Waiting for what somebody else does: bounded, and over as soon as it is true."""

import time
from collections.abc import Callable

PROBE_INTERVAL_S = 0.02


def comes_true(
    truth: Callable[[], object], timeout_s: float, *, every_s: float = PROBE_INTERVAL_S
) -> bool:
    """Wait for something to become true; False when it did not in time.

    Args:
        truth: is asked again and again, once at least.
        timeout_s: how long at most.
        every_s: how long to sleep between two questions.
    """
    give_up_at = time.monotonic() + timeout_s
    while not truth():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(every_s)
    return True


def wait_until(truth: Callable[[], object], *, timeout_s: float, what: str) -> None:
    """Wait for something to become true.

    Raises:
        TimeoutError: it did not; says what.
    """
    if not comes_true(truth, timeout_s):
        raise TimeoutError(f"not within {timeout_s:g} s: {what}")
