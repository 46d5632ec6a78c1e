"""Which processes of the lab have ended although nobody killed them."""

import signal
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.checker.violation import Violation
from tests.chaos.fire.journal import Journal
from tests.chaos.stage import Stage

LOG_LINES = 25
SHOWN_BEFORE_S = 5.0
BY_CRASH_POINT = -signal.SIGKILL
NOTICED_S = 3.0
"""How long after it has struck a crash point the supervisor may notice the death."""


@dataclass
class Inquest:
    """Looks at the dead and tells those that ended by themselves, once each.

    Args:
        stage: whose roles are looked at.
        journal: shows what was done shortly before.
        list_killed: returns the roles that somebody keeps dead, or starts again, right now.
        struck_at: when crash points have struck, by `time.time`; those on disk are seen anyway.
        violations: ``ended_by_itself``, with the last lines of the log.
    """

    stage: Stage
    journal: Journal
    list_killed: Callable[[], Collection[str]]
    struck_at: list[float] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    _told: set[tuple[str, int]] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def hold(self) -> list[str]:
        """Return the roles that have ended by themselves and are still dead."""
        before = frozenset(self.list_killed())
        suspects = [role for role in self._list_dead() if not self._died_at_point(role)]
        after = frozenset(self.list_killed())
        # One that was killed and started again between two of these looks lives by now.
        dead = {(role["role"], role["pid"]) for role in self._list_dead()} if suspects else set()
        ended = [
            role
            for role in suspects
            if role["role"] not in before | after and (role["role"], role["pid"]) in dead
        ]
        with self._guard:
            for role in ended:
                self._tell(role)
        return [role["role"] for role in ended]

    def _died_at_point(self, role: dict[str, Any]) -> bool:
        if role["exit_code"] != BY_CRASH_POINT:
            return False
        struck_at = list(self.struck_at)
        for file in self.stage.crash.path.glob("*.struck"):
            with suppress(FileNotFoundError):
                struck_at.append(file.stat().st_mtime)
        return any(-1.0 < role["since"] - at < NOTICED_S for at in struck_at)

    def _tell(self, role: dict[str, Any]) -> None:
        name, pid, code = role["role"], role["pid"], role["exit_code"]
        if (name, pid) in self._told:
            return
        self._told.add((name, pid))
        what = f"{name}, process {pid}, has ended with code {code}, and nobody had killed it"
        self.journal.say(f"ENDED BY ITSELF {what}")
        at = role["since"]
        story = self.journal.between(at - SHOWN_BEFORE_S, at + 1)
        self.violations.append(Violation("ended_by_itself", what, story + self._tail(name)))

    def _tail(self, role: str) -> list[str]:
        log = self.stage.lab.layout.log(role)
        return log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []

    def _list_dead(self) -> list[dict[str, Any]]:
        return [role for role in self.stage.lab.status()["roles"] if not role["running"]]
