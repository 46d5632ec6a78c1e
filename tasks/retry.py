"""When a failed step is begun again: one pure function of the error and the count."""

from innkeeper.errors import InnkeeperError

FIRST_S = 0.5
LONGEST_S = 30.0


def backoff_s(failures: int, error: InnkeeperError) -> float:
    """Return the seconds until the next attempt.

    Args:
        failures: how often the step has failed before this time.
        error: what failed; its ``retry_after_s`` detail, when there, is the least.
    """
    exponential_s = min(FIRST_S * 2.0 ** max(failures, 0), LONGEST_S)
    return float(max(exponential_s, float(error.details.get("retry_after_s") or 0)))
