"""Plays strikes and traps, and puts everything right again."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from lab.errors import LabError
from tests.chaos.checker.checker import Checker
from tests.chaos.faults.fault import Fault, MissedError, family_of
from tests.chaos.faults.guest_fault import GuestKilled
from tests.chaos.faults.process_faults import Killed, start_at_last
from tests.chaos.fire.inquest import BY_CRASH_POINT, Inquest
from tests.chaos.fire.journal import Journal
from tests.chaos.fire.recovery import Death, RecoveryClock
from tests.chaos.fire.strikes import Strike, Trap
from tests.chaos.patience import comes_true
from tests.chaos.stage import Stage

TICK_S = 0.02
SERVICES = ("postgres", "redis")
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
    _killed: Counter[str] = field(default_factory=Counter)
    _owes_redis_loss: bool = False

    def __post_init__(self) -> None:
        self.inquest = Inquest(self.stage, self.journal, lambda: set(+self._killed))

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
        """Stop both, look who has ended by itself, and mend everything.

        Raises:
            LabError, TimeoutError: something does not come back.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        self.inquest.hold()
        self._killed.clear()
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
        self._revive_ended()
        began_at = time.time()
        struck: list[Fault] = []
        deaths: list[Death] = []
        for fault in strike.faults:
            self._hold_down(fault, 1)
            self._killed.update(_roles_of(fault))
            try:
                fault.strike(self.stage)
            except MissedError as exc:
                self._hold_down(fault, -1)
                self._killed.subtract(_roles_of(fault))
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
        # Services first: a worker is up only when it has reached them.
        for fault in sorted(struck, key=lambda fault: not fault.name.startswith(SERVICES)):
            try:
                fault.mend(self.stage)
                # One that does not come back has been killed all the same.
                self._killed.subtract(_roles_of(fault))
            finally:
                self._hold_down(fault, -1)
            self.journal.say(f"mended {fault.name}")
            self.harms.append(Harm(fault.name, began_at, time.time()))

    def _hold_down(self, fault: Fault, by: int) -> None:
        # The other hand must not start what this one keeps dead.
        for role in _roles_of(fault):
            self._held_down[role] += by

    def _revive_ended(self) -> None:
        """Start again what has ended by itself, as any service manager would."""
        with suppress(LabError):
            for role in self.inquest.hold():
                self._start_again(role)

    def _start_again(self, role: str) -> None:
        # Until it runs, it may end more than once for want of what is struck.
        self._killed[role] += 1
        start_at_last(self.stage, role)
        self._killed[role] -= 1

    def _trap(self, trap: Trap) -> None:
        self._revive_ended()
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
        self.inquest.struck_at.append(killed_at)
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
                self._start_again(death.role)
        self.harms += [Harm(point, killed_at, time.time()) for point in struck]
        self.journal.say(f"started {dead}")

    def _wait_dead(self, timeout_s: float = 2.0) -> list[str]:
        """Return who has died at a point; the supervisor notices a moment later."""
        dead: list[str] = []

        def has_died() -> bool:
            dead[:] = [
                role
                for role in self._dead_roles(exit_code=BY_CRASH_POINT)
                if not self._held_down[role]
            ]
            return bool(dead)

        comes_true(has_died, timeout_s, every_s=TICK_S)
        return dead

    def _dead_roles(self, *, exit_code: int | None = None) -> list[str]:
        """Return the dead; only those of an exit code, if one is given."""
        with suppress(LabError):
            return [
                role["role"]
                for role in self.stage.lab.status()["roles"]
                if not role["running"] and exit_code in (None, role["exit_code"])
            ]
        return []


def _roles_of(fault: Fault) -> list[str]:
    """Return the roles of the lab that a fault takes down for a while."""
    if isinstance(fault, Killed):
        return [fault.role]
    family, _, of = fault.name.partition(":")
    if family in ("redis_killed_and_emptied", "postgres_restarted", "redis_stopped"):
        return [family.partition("_")[0]]
    return [f"worker:{of.partition(':')[0]}"] if family == "clock_skewed" else []
