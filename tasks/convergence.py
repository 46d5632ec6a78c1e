"""What to do with a migration that does not end by itself: a schedule, decided with numbers. Pure.

Looked at once per pass over the memory, because within a pass the figures are a saw-tooth:
a pass that leaves less to send than the one before converges. One that does not gets, in this
order: a longer pause at the switch-over, up to the caller's limit; the guest slowed down by QEMU
(auto-converge does that by itself from the second pass on); post-copy, where it is allowed; and at
the deadline, what the caller wants then. Somebody who wants it over now gets post-copy, or a pause.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from tasks.forecast import MIB

OnTimeout = Literal["abort", "pause", "post_copy"]

# What libvirt alone would begin with; a shorter one costs passes, and a guest that is quiet enough
# stands still for less anyway.
FIRST_DOWNTIME_MS = 300
# A pass must leave a tenth less than the one before to count as progress.
PROGRESS_SHARE = 0.9
# A paused guest writes nothing, so what is left crosses in one pass; twice that is patience enough.
PAUSED_PATIENCE = 2.0
PAUSED_PATIENCE_MIN_S = 30.0
# So many stalled passes QEMU gets to slow the guest down before post-copy ends the matter.
THROTTLED_PASSES = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller allows.

    Args:
        max_downtime_ms: the longest pause at the switch-over.
        deadline_s: the time for the whole.
        on_timeout: at the deadline, give it up, pause the guest so that the rest crosses, or let
            it go on at the destination before the rest is there.
        may_post_copy: whether the migration was begun so that post-copy is possible.
        ended_by: who wants it to end now; None for nobody.
    """

    max_downtime_ms: int
    deadline_s: float
    on_timeout: OnTimeout
    may_post_copy: bool = False
    ended_by: str | None = None


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
        throttled: stalled passes while QEMU slowed the guest.
        is_paused: whether the guest was paused so that the rest crosses.
        paused_until_s: when that has been long enough; None where it is not yet reckoned.
        is_post_copy: whether the guest is past the point of no return.
    """

    iteration: int = 0
    remaining_bytes: int = 0
    stalls: int = 0
    downtime_step: int = 0
    throttled: int = 0
    is_paused: bool = False
    paused_until_s: float | None = None
    is_post_copy: bool = False


class Act(StrEnum):
    """What a decision asks for."""

    RAISE_DOWNTIME = "raise_downtime"
    NOTE_THROTTLE = "note_throttle"
    POST_COPY = "post_copy"
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
    shorter: list[int] = []
    step_ms = FIRST_DOWNTIME_MS
    while step_ms < max_downtime_ms:
        shorter.append(step_ms)
        step_ms *= 2
    return (*shorter, max_downtime_ms)


def decide(limits: Limits, course: Course, figures: Figures) -> tuple[Course, Decision | None]:
    """Decide what to do next.

    Args:
        limits: what the caller allows.
        course: what ``decide`` returned the last time; ``Course()`` at first.
        figures: what the job says now.

    Returns:
        The new course, and what to do; None for nothing.
    """
    if course.is_post_copy:
        # It can only go on, however long it takes.
        return course, None
    if course.is_paused:
        return _while_paused(course, figures)
    if limits.ended_by is not None and figures.iteration:
        return _end_now(limits, course, figures)
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
    if figures.throttle_percent and (
        not limits.may_post_copy or course.throttled < THROTTLED_PASSES
    ):
        why = f"{_stalled(course, figures)} QEMU slows the guest by {figures.throttle_percent} %."
        return replace(course, throttled=course.throttled + 1), Decision(Act.NOTE_THROTTLE, why)
    if limits.may_post_copy:
        return _start_post_copy(course, f"{_stalled(course, figures)} nothing else has helped;")
    return course, None


def _start_post_copy(course: Course, because: str) -> tuple[Course, Decision]:
    why = f"{because} the guest goes on at the destination, and its memory follows."
    return replace(course, is_post_copy=True), Decision(Act.POST_COPY, why)


def _pause(course: Course, figures: Figures, because: str) -> tuple[Course, Decision]:
    why = f"{because} the guest is paused, so that the rest crosses."
    return replace(
        course, is_paused=True, paused_until_s=figures.elapsed_s + _patience_s(figures)
    ), Decision(Act.PAUSE, why)


def _patience_s(figures: Figures) -> float:
    rest_s = figures.remaining_bytes / figures.link_bytes_s if figures.link_bytes_s else 0.0
    return max(PAUSED_PATIENCE * rest_s, PAUSED_PATIENCE_MIN_S)


def _while_paused(course: Course, figures: Figures) -> tuple[Course, Decision | None]:
    if course.paused_until_s is None:
        # Another attempt has paused it; the patience begins anew.
        return replace(course, paused_until_s=figures.elapsed_s + _patience_s(figures)), None
    if figures.elapsed_s < course.paused_until_s:
        return course, None
    why = f"{_stalled(course, figures)} it did not end although the guest was paused."
    return course, Decision(Act.ABORT, why)


def _end_now(limits: Limits, course: Course, figures: Figures) -> tuple[Course, Decision]:
    because = f"{limits.ended_by} wants it to end now, after {figures.elapsed_s:.0f} s:"
    if limits.may_post_copy:
        return _start_post_copy(course, because)
    return _pause(course, figures, because)


def _at_the_deadline(limits: Limits, course: Course, figures: Figures) -> tuple[Course, Decision]:
    because = f"{_stalled(course, figures)} after {figures.elapsed_s:.0f} s"
    # While disks are copied neither helps: the guest would stand still for all of them.
    if limits.on_timeout == "post_copy" and limits.may_post_copy and figures.iteration:
        return _start_post_copy(course, because)
    if limits.on_timeout == "pause":
        return _pause(course, figures, because)
    why = f"{_stalled(course, figures)} it did not end within {limits.deadline_s:.0f} s."
    return course, Decision(Act.ABORT, why)


def _stalled(course: Course, figures: Figures) -> str:
    return (
        f"Pass {max(figures.iteration, course.iteration)} begins with"
        f" {figures.remaining_bytes / MIB:.0f} MiB: the guest dirties"
        f" {figures.dirty_bytes_s / MIB:.0f} MiB/s, the link carries"
        f" {figures.link_bytes_s / MIB:.0f} MiB/s;"
    )
