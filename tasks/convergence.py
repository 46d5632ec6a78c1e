"""What to do with a migration that does not end by itself: a schedule, decided with numbers. Pure.

Looked at once per pass over the memory, because within a pass the figures are a saw-tooth:
a pass that leaves less to send than the one before converges. One that does not gets, in this
order: a longer pause at the switch-over, up to the caller's limit; the guest slowed down by QEMU
(auto-converge does that by itself from the second pass on); and at the deadline, what the caller
wants then.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from tasks.forecast import MIB

OnTimeout = Literal["abort", "pause"]

DOWNTIME_SHARES = (0.25, 0.5, 1.0)
SHORTEST_DOWNTIME_MS = 20
# A pass must leave a tenth less than the one before to count as progress.
PROGRESS_SHARE = 0.9
# A paused guest writes nothing, so what is left crosses in one pass; twice that is patience enough.
PAUSED_PATIENCE = 2.0
PAUSED_PATIENCE_MIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller allows.

    Args:
        max_downtime_ms: the longest pause at the switch-over.
        deadline_s: the time for the whole.
        on_timeout: at the deadline, give it up, or pause the guest so that the rest crosses.
    """

    max_downtime_ms: int
    deadline_s: float
    on_timeout: OnTimeout


@dataclass(frozen=True, slots=True)
class Figures:
    """What the job says now.

    Args:
        elapsed_s: since it began.
        iteration: passes over the memory so far; 0 while disks are copied.
        remaining_bytes: of memory, in this pass.
        link_bytes_s: as measured.
        dirty_bytes_s: as measured.
        throttle_percent: how much of its CPU the guest loses.
    """

    elapsed_s: float
    iteration: int = 0
    remaining_bytes: int = 0
    link_bytes_s: float = 0.0
    dirty_bytes_s: float = 0.0
    throttle_percent: int = 0


@dataclass(frozen=True, slots=True)
class Course:
    """What has been seen and done so far.

    Args:
        iteration: the last pass that was judged.
        remaining_bytes: what it began with.
        stalls: passes in a row that were no progress.
        downtime_step: index of the pause that is allowed now.
        paused_at_s: when the guest was paused; None for not.
    """

    iteration: int = 0
    remaining_bytes: int = 0
    stalls: int = 0
    downtime_step: int = 0
    paused_at_s: float | None = None


class Act(StrEnum):
    """What a decision asks for."""

    RAISE_DOWNTIME = "raise_downtime"
    NOTE_THROTTLE = "note_throttle"
    PAUSE = "pause"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    Args:
        act: what to do.
        why: one sentence with the figures.
        downtime_ms: with ``raise_downtime``.
    """

    act: Act
    why: str
    downtime_ms: int | None = None


def list_downtimes_ms(max_downtime_ms: int) -> tuple[int, ...]:
    """Return the pauses that are allowed one after the other, shortest first."""
    floor = min(SHORTEST_DOWNTIME_MS, max_downtime_ms)
    return tuple(
        dict.fromkeys(max(round(max_downtime_ms * share), floor) for share in DOWNTIME_SHARES)
    )


def decide(limits: Limits, course: Course, figures: Figures) -> tuple[Course, Decision | None]:
    """Decide what to do next.

    Args:
        limits: what the caller allows.
        course: what ``decide`` returned the last time; ``Course()`` at first.
        figures: what the job says now.

    Returns:
        The new course, and what to do; None for nothing.
    """
    if figures.elapsed_s >= limits.deadline_s:
        return _at_the_deadline(limits, course, figures)
    if figures.iteration <= course.iteration:
        return course, None
    is_first = course.iteration == 0
    has_progressed = is_first or figures.remaining_bytes < course.remaining_bytes * PROGRESS_SHARE
    course = replace(
        course,
        iteration=figures.iteration,
        remaining_bytes=figures.remaining_bytes,
        stalls=0 if has_progressed else course.stalls + 1,
    )
    if has_progressed:
        return course, None
    steps = list_downtimes_ms(limits.max_downtime_ms)
    if course.downtime_step + 1 < len(steps):
        course = replace(course, downtime_step=course.downtime_step + 1)
        raised_ms = steps[course.downtime_step]
        why = f"{_stalled(course, figures)} the switch-over may take {raised_ms} ms now."
        return course, Decision(Act.RAISE_DOWNTIME, why, raised_ms)
    if figures.throttle_percent:
        why = f"{_stalled(course, figures)} QEMU slows the guest by {figures.throttle_percent} %."
        return course, Decision(Act.NOTE_THROTTLE, why)
    return course, None


def _at_the_deadline(
    limits: Limits, course: Course, figures: Figures
) -> tuple[Course, Decision | None]:
    if limits.on_timeout == "pause" and course.paused_at_s is None:
        why = (
            f"{_stalled(course, figures)} the guest is paused after {figures.elapsed_s:.0f} s, so"
            " that the rest crosses."
        )
        return replace(course, paused_at_s=figures.elapsed_s), Decision(Act.PAUSE, why)
    if course.paused_at_s is not None:
        rest_s = figures.remaining_bytes / figures.link_bytes_s if figures.link_bytes_s else 0.0
        patience_s = max(PAUSED_PATIENCE * rest_s, PAUSED_PATIENCE_MIN_S)
        if figures.elapsed_s - course.paused_at_s < patience_s:
            return course, None
    why = f"{_stalled(course, figures)} it did not end within {limits.deadline_s:.0f} s."
    return course, Decision(Act.ABORT, why)


def _stalled(course: Course, figures: Figures) -> str:
    return (
        f"Pass {max(figures.iteration, course.iteration)} begins with"
        f" {figures.remaining_bytes / MIB:.0f} MiB: the guest dirties"
        f" {figures.dirty_bytes_s / MIB:.0f} MiB/s, the link carries"
        f" {figures.link_bytes_s / MIB:.0f} MiB/s;"
    )
