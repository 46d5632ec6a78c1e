"""Looks at everything after chaos and tells which promises are broken.

checker = Checker(lab)
...                       # break things, then bring everything back to life
checker.note_redis_loss()  # at the moment Redis was killed or emptied
violations = checker.check(settled=True)
assert not violations, format_violations(violations)

It shares no code with what it checks: raw SQL, virsh, Redis and the file system.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime

from lab.handle import Lab
from tests.chaos.checker.guest_invariants import record_is_true, runs_once
from tests.chaos.checker.ledger_look import connect
from tests.chaos.checker.leftovers import nothing_orphaned
from tests.chaos.checker.look import Look, look_at
from tests.chaos.checker.operation_invariants import (
    operation_ends,
    outcome_published,
    step_done_once,
)
from tests.chaos.checker.timeline import tell
from tests.chaos.checker.violation import Finding, Violation, format_violations

__all__ = ["INVARIANTS", "Checker", "Violation", "format_violations"]

INVARIANTS: dict[str, Callable[[Look], Iterator[Finding]]] = {
    invariant.__name__: invariant
    for invariant in (
        runs_once,
        operation_ends,
        record_is_true,
        nothing_orphaned,
        step_done_once,
        outcome_published,
    )
}
NEVER_FOR_A_MOMENT = frozenset({"runs_once", "step_done_once"})
LOOK_AGAIN_S = 1.0


class Checker:
    """Checks a lab's promises; a broken one is an answer, never an exception.

    Args:
        lab: all its libvirtds, Postgres and Redis must be alive when it is checked.
        patience_s: how long Innkeeper may take to repair what it repairs by itself, such as a
            missed power event or a drifted claim; a little more than the time between two periodic
            syncs. What must never be, not for a moment, is told at once.
    """

    def __init__(self, lab: Lab, *, patience_s: float = 15.0) -> None:
        self._lab = lab
        self._patience_s = patience_s
        self._outcomes_lost_until: datetime | None = None

    def note_redis_loss(self) -> None:
        """Tell that Redis has just been killed or emptied.

        Outcomes published until now may then be missing; Postgres has them. Those that are there
        must be true all the same. Postgres must be alive.
        """
        with connect(self._lab.env()["INNKEEPER_DATABASE_URL"]) as connection:
            row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
        self._outcomes_lost_until = row["now"] if row is not None else None

    def check(self, *, settled: bool) -> list[Violation]:
        """Return every broken promise.

        Args:
            settled: whether all operations should have ended and told their outcome.
        """
        give_up_at_s = time.monotonic() + self._patience_s
        found = self._find(settled=settled)
        while set(found) - _never(found) and time.monotonic() < give_up_at_s:
            time.sleep(LOOK_AGAIN_S)
            again = self._find(settled=settled)
            # What is new may be on its way out like the rest; what must never be is kept.
            kept = _never(found) | _never(again) | (set(found) & set(again))
            found = {key: one for key, one in (found | again).items() if key in kept}
        return list(found.values())

    def _find(self, *, settled: bool) -> dict[tuple[str, str], Violation]:
        look = look_at(self._lab, settled=settled, outcomes_lost_until=self._outcomes_lost_until)
        return {
            (name, finding.what): Violation(name, finding.what, tell(look.ledger, finding))
            for name, invariant in INVARIANTS.items()
            for finding in invariant(look)
        }


def _never(found: dict[tuple[str, str], Violation]) -> set[tuple[str, str]]:
    return {key for key in found if key[0] in NEVER_FOR_A_MOMENT}
