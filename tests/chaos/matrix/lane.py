"""One lab and the cases that run on it; several lanes run side by side as processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg

from lab.errors import LabError
from tests.chaos.checker.checker import Checker
from tests.chaos.matrix.case_result import INVARIANTS, CaseResult
from tests.chaos.matrix.case_run import Player
from tests.chaos.matrix.cases import Case
from tests.chaos.stage import set_stage

CHECK_EVERY = 50
HOSTS = 2
# What is seen of a lab that is not there any more.
LAB_IS_LOST = (LabError, OSError, psycopg.OperationalError)


def run_lane(cases: Sequence[Case], emit: Callable[[CaseResult], None]) -> None:
    """Run cases one after another; a lab that breaks is replaced.

    Args:
        cases: what to run.
        emit: is given each result as soon as it is there.
    """
    todo = list(cases)
    while todo:
        with _played() as player:
            done = 0
            for case in list(todo):
                todo.remove(case)
                try:
                    emit(player.run(case))
                    done += 1
                    if done % CHECK_EVERY == 0 or not todo:
                        _check(player, done, emit)
                except LAB_IS_LOST as exc:
                    emit(_lost(case, exc))
                    break


@contextmanager
def _played() -> Iterator[Player]:
    with set_stage(hosts=HOSTS, bent=False) as stage:
        player = Player(stage)
        try:
            yield player
        finally:
            player.close()


def _check(player: Player, done: int, emit: Callable[[CaseResult], None]) -> None:
    """Let the independent checker look at everything that there is."""
    player.stage.revive()
    for violation in Checker(player.stage.lab).check(settled=True):
        emit(
            CaseResult(
                case=f"after {done} cases: {violation.invariant}",
                label=INVARIANTS,
                moment=violation.invariant,
                plot="plain",
                held=False,
                why=violation.what,
                kills=0,
                recovery_ms=None,
                elapsed_ms=0.0,
                timeline=violation.timeline,
            )
        )


def _lost(case: Case, error: Exception) -> CaseResult:
    return CaseResult(
        case=case.id,
        label=case.label,
        moment=case.point.moment,
        plot=case.plot.value,
        held=False,
        why=f"the lab was lost: {type(error).__name__}: {error}",
        kills=0,
        recovery_ms=None,
        elapsed_ms=0.0,
    )
