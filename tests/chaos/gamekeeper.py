"""Plays strikes and traps, and puts everything right again."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from lab.errors import LabError
from tests.chaos.checker import Checker
from tests.chaos.fault import Fault, MissedError
from tests.chaos.guest_fault import GuestKilled
from tests.chaos.journal import Journal
from tests.chaos.process_faults import Killed, start_at_last
from tests.chaos.recovery import Death, RecoveryClock
from tests.chaos.stage import Stage
from tests.chaos.strikes import Strike, Trap, family_of

TICK_S = 0.02
EMPTIES_REDIS = frozenset({"redis_killed_and_emptied", "redis_flushed"})


@dataclass(frozen=True, slots=True)
class Harm:
    """A fault that stood for a while.

    Args:
        since: by `time.time`.
        until: when it was mended.
    """

    name: str
    since: float
    until: float


@dataclass
class Gamekeeper:
    """Strikes with two hands: one breaks the surroundings, the other arms crash points.

    Args:
        stage: what is struck.
        recovery: is told of every process that was killed.
        journal: is told of everything.
        checker: is told of every loss of what was in Redis.
    """

    stage: Stage
    recovery: RecoveryClock
    journal: Journal
    checker: Checker
    counts: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    harms: list[Harm] = field(default_factory=list)
    dead_guests: dict[str, float] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _held_down: Counter[str] = field(default_factory=Counter)
    _owes_redis_loss: bool = False

    def begin(self, strikes: Iterator[Strike], traps: Iterator[Trap]) -> None:
        """Play both until `end`."""
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._play, args=(strikes, self._strike), daemon=True),
            threading.Thread(target=self._play, args=(traps, self._trap), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop both and mend everything.

        Raises:
            LabError, TimeoutError: something does not come back.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        self.stage.crash.clear()
        self.stage.lab.heal()
        if self.stage.redis is not None:
            self.stage.redis.straighten()
        for role in self._dead_roles():
            start_at_last(self.stage, role)

    def tell_redis_loss(self) -> None:
        """Tell the checker of a loss that it could not be told of while Postgres was away."""
        if self._owes_redis_loss:
            with suppress(psycopg.OperationalError):
                self.checker.note_redis_loss()
                self._owes_redis_loss = False

    def _play(self, plan: Iterator[Strike | Trap], play) -> None:  # type: ignore[no-untyped-def]
        while not self._stop.is_set():
            try:
                play(next(plan))
            except Exception as exc:
                # The fire goes on; what does not come back is found at the next breath.
                self.defects.append(repr(exc))
                self.journal.say(f"DEFECT of the gamekeeper: {exc!r}")
                self._stop.wait(1.0)

    def _strike(self, strike: Strike) -> None:
        if self._stop.wait(strike.pause_s):
            return
        began_at = time.time()
        struck: list[Fault] = []
        deaths: list[Death] = []
        for fault in strike.faults:
            self._hold_down(fault, 1)
            try:
                fault.strike(self.stage)
            except MissedError as exc:
                self._hold_down(fault, -1)
                self.missed[family_of(fault)] += 1
                self.journal.say(f"missed {fault.name}: {exc}")
                continue
            struck.append(fault)
            self.counts[family_of(fault)] += 1
            self.journal.say(f"STRUCK {fault.name} for {strike.hold_s} s")
            if isinstance(fault, Killed):
                deaths.append(self.recovery.began(fault.role, time.time()))
            if family_of(fault) in EMPTIES_REDIS:
                self._owes_redis_loss = True
                self.tell_redis_loss()
            if isinstance(fault, GuestKilled):
                self.dead_guests[fault.guest] = time.time()
        if struck:
            self._stop.wait(strike.hold_s)
        for death in deaths:
            death.restarted_at = time.time()
        for fault in struck:
            try:
                fault.mend(self.stage)
            finally:
                self._hold_down(fault, -1)
            self.journal.say(f"mended {fault.name}")
            self.harms.append(Harm(fault.name, began_at, time.time()))

    def _hold_down(self, fault: Fault, by: int) -> None:
        # The other hand must not start what this one keeps dead.
        if isinstance(fault, Killed):
            self._held_down[fault.role] += by
        elif family_of(fault) in (
            "redis_killed_and_emptied",
            "postgres_restarted",
            "redis_stopped",
        ):
            self._held_down[family_of(fault).partition("_")[0]] += by
        elif family_of(fault) == "clock_skewed":
            self._held_down[f"worker:{fault.name.split(':')[1]}"] += by

    def _trap(self, trap: Trap) -> None:
        crash = self.stage.crash
        for point in trap.points:
            crash.arm_kill(point)
        give_up_at = time.monotonic() + trap.patience_s
        struck: list[str] = []
        while not struck and time.monotonic() < give_up_at and not self._stop.wait(TICK_S):
            struck = [point for point in trap.points if crash.has_struck(point)]
        for point in trap.points:
            crash.disarm(point)
        # One more may have been on its way while the others were disarmed.
        struck = [point for point in trap.points if crash.has_struck(point)]
        if not struck:
            return
        killed_at = time.time()
        for point in struck:
            self.points[point] += 1
            self.counts["crash_point"] += 1
        dead = self._wait_dead()
        self.journal.say(f"STRUCK {' '.join(struck)}: dead {dead} for {trap.restart_after_s} s")
        deaths = [self.recovery.began(role, killed_at) for role in dead]
        self._stop.wait(trap.restart_after_s)
        for death in deaths:
            death.restarted_at = time.time()
            if not self._held_down[death.role]:
                start_at_last(self.stage, death.role)
        self.harms += [Harm(point, killed_at, time.time()) for point in struck]
        self.journal.say(f"started {dead}")

    def _wait_dead(self, timeout_s: float = 2.0) -> list[str]:
        """Return who has died by itself; the supervisor notices a moment later."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            dead = [role for role in self._dead_roles() if not self._held_down[role]]
            if dead or time.monotonic() > give_up_at:
                return dead
            time.sleep(TICK_S)

    def _dead_roles(self) -> list[str]:
        with suppress(LabError):
            roles = self.stage.lab.status()["roles"]
            return [role["role"] for role in roles if not role["running"]]
        return []
