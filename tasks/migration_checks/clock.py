"""The two hosts' clocks, compared by way of the database's."""

from collections.abc import Iterator

from tasks.failed_check import Failure, failure
from tasks.migration_checks.move import Move
from tasks.migration_checks.survey import survey_clock

MOST_SKEW_S = 2.0


def check_clock(move: Move) -> Iterator[Failure]:
    """The hosts' clocks must agree: the guest takes its time from the one it runs on."""
    src = move.survey.get("clock")
    if src is None:
        return
    dst = survey_clock(move)
    apart_s = dst["skew_s"] - src["skew_s"]
    # On a busy machine an answer may take long; what it leaves open speaks for the clock.
    doubt_s = dst["doubt_s"] + src["doubt_s"]
    if abs(apart_s) <= MOST_SKEW_S + doubt_s:
        return
    which = "ahead of" if apart_s > 0 else "behind"
    yield failure(
        "clock",
        f"The clock of {move.dst} is {abs(apart_s):.1f} s {which} that of {move.src}; "
        f"{MOST_SKEW_S:g} s are tolerated.",
        f"Synchronise both hosts' clocks (chronyc tracking). Beside the database's clock, "
        f"{move.src} is {src['skew_s']:+.1f} s off and {move.dst} {dst['skew_s']:+.1f} s.",
    )
