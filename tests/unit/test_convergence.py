"""The schedule of a migration that does not converge, decision by decision."""

import pytest

from tasks.convergence import (
    Act,
    Course,
    Decision,
    Figures,
    Limits,
    OnTimeout,
    decide,
    list_downtimes_ms,
)
from tasks.forecast import MIB

LIMITS = Limits(max_downtime_ms=1200, deadline_s=60, on_timeout="abort")


def passes(
    *remaining_mib: int, limits: Limits = LIMITS, throttle_percent: int = 0
) -> list[Decision]:
    """Play passes over the memory, one a second, and return what was decided."""
    course, decisions = Course(), []
    for number, left in enumerate(remaining_mib, 1):
        figures = Figures(
            elapsed_s=float(number),
            iteration=number,
            remaining_bytes=left * MIB,
            link_bytes_s=10 * MIB,
            dirty_bytes_s=20 * MIB,
            throttle_percent=throttle_percent,
        )
        for _ in range(3):
            course, decision = decide(limits, course, figures)
            if decision is not None:
                decisions.append(decision)
    return decisions


def test_a_guest_that_converges_is_left_alone() -> None:
    assert passes(100, 50, 25, 12, 6) == []


def test_the_pause_is_raised_once_per_stalled_pass_and_never_beyond_the_limit() -> None:
    raised = passes(100, 100, 99, 100, 100, 100)

    assert [decision.act for decision in raised] == [Act.RAISE_DOWNTIME] * 2
    assert [decision.downtime_ms for decision in raised] == [600, 1200]
    assert "dirties 20 MiB/s, the link carries 10 MiB/s" in raised[0].why


def test_progress_in_between_raises_nothing() -> None:
    assert [d.downtime_ms for d in passes(100, 100, 50, 25, 24)] == [600, 1200]
    assert [d.downtime_ms for d in passes(100, 50, 25)] == []


def test_slowing_down_is_told_once_the_pause_is_used_up() -> None:
    acts = [decision.act for decision in passes(9, 9, 9, 9, 9, throttle_percent=30)]

    assert acts == [Act.RAISE_DOWNTIME] * 2 + [Act.NOTE_THROTTLE] * 2


def test_at_the_deadline_it_is_given_up() -> None:
    _, decision = decide(LIMITS, Course(), Figures(elapsed_s=60, iteration=3))

    assert decision is not None
    assert decision.act is Act.ABORT
    assert "within 60 s" in decision.why


def test_the_deadline_counts_for_disks_too() -> None:
    _, decision = decide(LIMITS, Course(), Figures(elapsed_s=61))

    assert decision is not None
    assert decision.act is Act.ABORT


def test_or_the_guest_is_paused_and_given_time_for_the_rest_and_no_more() -> None:
    limits = Limits(max_downtime_ms=1200, deadline_s=60, on_timeout="pause")

    def at(elapsed_s: float, course: Course) -> tuple[Course, Decision | None]:
        rest = Figures(elapsed_s, iteration=9, remaining_bytes=200 * MIB, link_bytes_s=10 * MIB)
        return decide(limits, course, rest)

    course, decision = at(60, Course(iteration=9))
    assert decision is not None
    assert decision.act is Act.PAUSE
    course, decision = at(61, course)
    assert decision is None
    course, decision = at(99, course)
    assert decision is None
    course, decision = at(101, course)
    assert decision is not None
    assert decision.act is Act.ABORT


def test_the_pauses_grow_and_end_at_the_limit() -> None:
    assert list_downtimes_ms(2000) == (300, 600, 1200, 2000)
    assert list_downtimes_ms(600) == (300, 600)
    assert list_downtimes_ms(300) == (300,)
    assert list_downtimes_ms(1) == (1,)


POSSIBLE = Limits(max_downtime_ms=1200, deadline_s=60, on_timeout="abort", may_post_copy=True)


def test_post_copy_comes_when_longer_pauses_have_not_helped() -> None:
    acts = [decision.act for decision in passes(9, 9, 9, 9, 9, 9, limits=POSSIBLE)]
    assert acts == [Act.RAISE_DOWNTIME] * 2 + [Act.POST_COPY]


def test_and_only_after_slowing_down_has_had_its_chance() -> None:
    decided = passes(9, 9, 9, 9, 9, 9, 9, limits=POSSIBLE, throttle_percent=30)
    assert [decision.act for decision in decided] == (
        [Act.RAISE_DOWNTIME] * 2 + [Act.NOTE_THROTTLE] * 2 + [Act.POST_COPY]
    )


@pytest.mark.parametrize(
    ("on_timeout", "may_post_copy", "iteration", "act"),
    [
        ("abort", False, 3, Act.ABORT),
        ("abort", True, 3, Act.ABORT),
        ("pause", False, 3, Act.PAUSE),
        ("pause", True, 3, Act.PAUSE),
        ("post_copy", True, 3, Act.POST_COPY),
        # While disks are copied there is no memory to follow.
        ("post_copy", True, 0, Act.ABORT),
        # A guest that was paused before cannot; its migration is begun without it.
        ("post_copy", False, 3, Act.ABORT),
    ],
)
def test_at_the_deadline_the_caller_has_the_word(
    on_timeout: OnTimeout, may_post_copy: bool, iteration: int, act: Act
) -> None:
    limits = Limits(1200, 60, on_timeout, may_post_copy)
    _, decision = decide(limits, Course(), Figures(elapsed_s=60, iteration=iteration))
    assert decision is not None
    assert decision.act is act


@pytest.mark.parametrize(("may_post_copy", "act"), [(False, Act.PAUSE), (True, Act.POST_COPY)])
def test_somebody_who_wants_it_over_gets_it_once_memory_flows(
    may_post_copy: bool, act: Act
) -> None:
    limits = Limits(1200, 60, "abort", may_post_copy, ended_by="eve")
    course, decision = decide(limits, Course(), Figures(elapsed_s=1, iteration=0))
    assert decision is None
    course, decision = decide(limits, course, Figures(elapsed_s=2, iteration=1))
    assert decision is not None
    assert (decision.act, "eve" in decision.why) == (act, True)
    assert decide(limits, course, Figures(elapsed_s=3, iteration=1))[1] is None


def test_nothing_is_decided_in_post_copy_however_late_it_is() -> None:
    beyond = Course(is_post_copy=True)
    assert decide(POSSIBLE, beyond, Figures(elapsed_s=9999, iteration=9)) == (beyond, None)


def test_the_patience_with_a_paused_guest_is_not_cut_short_while_the_rest_shrinks() -> None:
    limits = Limits(1200, 60, "pause")
    course = Course(iteration=9)
    for elapsed_s in range(60, 159):
        left = max(600 - 10 * (elapsed_s - 60), 10) * MIB
        figures = Figures(float(elapsed_s), 9, left, link_bytes_s=10 * MIB)
        course, decision = decide(limits, course, figures)
        assert decision is None or decision.act is Act.PAUSE


def test_who_finds_the_guest_paused_begins_the_patience_anew() -> None:
    limits = Limits(1200, 60, "pause")
    found = Course(is_paused=True)
    course, decision = decide(limits, found, Figures(500, 9, 10 * MIB, link_bytes_s=10 * MIB))
    assert decision is None
    assert decide(limits, course, Figures(529, 9, MIB, link_bytes_s=MIB))[1] is None
    late = decide(limits, course, Figures(531, 9, MIB, link_bytes_s=MIB))[1]
    assert late is not None
    assert late.act is Act.ABORT
