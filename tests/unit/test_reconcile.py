"""The migration's table, row by row, and its one law: never commit while the source may run."""

import itertools

import pytest

from innkeeper.states import PowerState as Power
from tasks.reconcile import Look, Verdict, decide

STATES = [None, *Power]


LEFT = Look(None, has_left=True)
MIGRATED = Look(Power.SHUTDOWN, has_left=True)


@pytest.mark.parametrize(
    ("src", "dst", "verdict"),
    [
        (LEFT, Power.PAUSED, Verdict.COMMIT),
        (MIGRATED, Power.PAUSED, Verdict.COMMIT),
        (LEFT, Power.RUNNING, Verdict.COMMIT),
        (LEFT, Power.SHUTDOWN, Verdict.COMMIT),
        (LEFT, None, Verdict.UNKNOWN),
        (Look(Power.CRASHED), None, Verdict.ROLL_BACK),
        (Look(Power.CRASHED), Power.SHUTDOWN, Verdict.ROLL_BACK),
        (Look(Power.CRASHED), Power.PAUSED, Verdict.UNKNOWN),
        (Look(Power.CRASHED), Power.RUNNING, Verdict.COMMIT),
        (Look(Power.PAUSED), Power.RUNNING, Verdict.COMMIT),
        (Look(Power.PAUSED), Power.PAUSED, Verdict.ROLL_BACK),
        (Look(Power.PAUSED), None, Verdict.ROLL_BACK),
        (Look(Power.RUNNING), None, Verdict.ROLL_BACK),
        (Look(Power.RUNNING), Power.SHUTDOWN, Verdict.ROLL_BACK),
        (Look(Power.RUNNING), Power.PAUSED, Verdict.ROLL_BACK),
        (Look(Power.RUNNING), Power.RUNNING, Verdict.UNKNOWN),
    ],
)
def test_the_table(src: Look, dst: Power | None, verdict: Verdict) -> None:
    assert decide(src, Look(dst)) is verdict


def test_a_guest_that_arrived_whole_is_kept_when_its_source_is_off() -> None:
    arrived = Look(Power.PAUSED, has_arrived=True)

    assert decide(Look(Power.SHUTDOWN), arrived) is Verdict.COMMIT
    assert decide(Look(Power.CRASHED), arrived) is Verdict.COMMIT
    assert decide(Look(Power.PAUSED), arrived) is Verdict.ROLL_BACK
    assert decide(Look(Power.RUNNING), arrived) is Verdict.ROLL_BACK
    assert Look.from_wire(arrived.to_wire()) == arrived


@pytest.mark.parametrize("dst", STATES)
def test_half_a_guest_is_never_ended_nor_resumed_for_what_the_other_side_shows(
    dst: Power | None,
) -> None:
    half = Look(Power.PAUSED, is_in_post_copy=True)

    died = dst in (Power.SHUTDOWN, Power.CRASHED)
    assert decide(half, Look(dst)) is (Verdict.COMMIT if died else Verdict.UNKNOWN)
    assert Look.from_wire(half.to_wire()) == half


@pytest.mark.parametrize("dst", STATES)
def test_once_the_guest_has_left_nothing_leads_back(dst: Power | None) -> None:
    assert decide(LEFT, Look(dst)) is not Verdict.ROLL_BACK
    assert decide(MIGRATED, Look(dst)) is not Verdict.ROLL_BACK


def test_nothing_is_committed_while_the_source_runs_and_nothing_decided_during_a_job() -> None:
    for src, dst in itertools.product(STATES, STATES):
        if src == Power.RUNNING:
            assert decide(Look(src), Look(dst)) is not Verdict.COMMIT
        assert decide(Look(src, has_job=True), Look(dst)) is Verdict.UNKNOWN
        assert decide(Look(src), Look(dst, has_job=True)) is Verdict.UNKNOWN


def test_a_running_destination_is_never_rolled_back() -> None:
    for src in STATES:
        assert decide(Look(src), Look(Power.RUNNING)) is not Verdict.ROLL_BACK


@pytest.mark.parametrize("state", STATES)
def test_a_look_survives_the_ledger(state: Power | None) -> None:
    look = Look(state, has_job=True)
    assert Look.from_wire(look.to_wire()) == look
