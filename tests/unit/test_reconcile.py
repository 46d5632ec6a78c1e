"""The migration's table, row by row, and its one law: never commit while the source may run."""

import itertools

import pytest

from innkeeper.states import PowerState as Power
from tasks.reconcile import Look, Verdict, decide

STATES = [None, *Power]


@pytest.mark.parametrize(
    ("src", "dst", "verdict"),
    [
        (None, Power.PAUSED, Verdict.COMMIT),
        (Power.SHUTDOWN, Power.PAUSED, Verdict.COMMIT),
        (None, Power.RUNNING, Verdict.COMMIT),
        (None, None, Verdict.UNKNOWN),
        (Power.SHUTDOWN, None, Verdict.UNKNOWN),
        (Power.PAUSED, Power.RUNNING, Verdict.COMMIT),
        (Power.PAUSED, Power.PAUSED, Verdict.ROLL_BACK),
        (Power.PAUSED, None, Verdict.ROLL_BACK),
        (Power.RUNNING, None, Verdict.ROLL_BACK),
        (Power.RUNNING, Power.SHUTDOWN, Verdict.ROLL_BACK),
        (Power.RUNNING, Power.PAUSED, Verdict.ROLL_BACK),
        (Power.RUNNING, Power.RUNNING, Verdict.UNKNOWN),
    ],
)
def test_the_table(src: Power | None, dst: Power | None, verdict: Verdict) -> None:
    assert decide(Look(src), Look(dst)) is verdict


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
