"""A slice of the matrix of crash points on real parts, and the proof that no point is left out.

The whole matrix: scripts/chaos --matrix
"""

from collections.abc import Iterator, Sequence

import pytest

from innkeeper import Innkeeper
from lab.handle import Lab
from tasks.crashpoints import CrashPoint
from tests.chaos.checker.checker import Checker, format_violations
from tests.chaos.matrix.case_run import Player
from tests.chaos.matrix.cases import (
    DEATHS,
    UNREACHABLE,
    VARIANTS,
    Case,
    Plot,
    Victim,
    all_cases,
    all_points,
    fast_slice,
)
from tests.chaos.stage import Stage
from tests.crash_directory import CrashDirectory

SLICE = fast_slice(all_cases())


@pytest.fixture(scope="module")
def player(lab: Lab, crash: CrashDirectory, client: Innkeeper) -> Iterator[Player]:
    player = Player(Stage(lab, crash, client))
    yield player
    player.clear()
    player.close()


def labels_of(point: CrashPoint) -> tuple[str, ...]:
    if point.name.startswith("spawn.inject_files:"):
        return ("spawn[files]",)
    return VARIANTS.get(point.kind, (point.kind,))


def test_every_point_has_its_cases_or_its_reason() -> None:
    cases = all_cases()
    assert len({case.id for case in cases}) == len(cases)
    covered = {(case.label, case.point.name, case.victim) for case in cases}
    expected = {
        (label, point.name, victim)
        for point in all_points()
        if point.name not in UNREACHABLE
        for label in labels_of(point)
        for victim in Victim
    }
    assert covered == expected
    assert set(UNREACHABLE) <= {point.name for point in all_points()}


def steps_of(cases: Sequence[Case]) -> set[tuple[str, str | None]]:
    return {(case.label, case.point.step) for case in cases if not case.point.is_undo}


def undos_of(cases: Sequence[Case]) -> set[tuple[str, str | None]]:
    return {(case.kind, case.point.step) for case in cases if case.point.is_undo}


def test_the_slice_has_every_step_both_victims_and_a_cancel() -> None:
    cases = [case for case in all_cases() if case.kind not in DEATHS]
    assert steps_of(SLICE) == steps_of(cases)
    assert undos_of(SLICE) == undos_of(cases)
    assert {case.victim for case in SLICE} == set(Victim)
    assert {case.plot for case in SLICE} == {Plot.PLAIN, Plot.CANCEL}
    assert {case.point.moment for case in SLICE} == {case.point.moment for case in cases}
    cancelled = {case.kind for case in SLICE if case.plot is Plot.CANCEL}
    assert cancelled == {case.kind for case in cases if case.plot is Plot.CANCEL}


@pytest.mark.lab
@pytest.mark.parametrize("case", SLICE, ids=lambda case: case.id)
def test_a_process_dies_and_what_it_did_ends_well(player: Player, case: Case) -> None:
    result = player.run(case)
    assert result.held, "\n".join([result.why, *result.timeline])


@pytest.mark.lab
def test_nothing_is_left_of_all_that(player: Player, lab: Lab) -> None:
    player.clear()
    violations = Checker(lab).check(settled=True)
    assert not violations, format_violations(violations)
