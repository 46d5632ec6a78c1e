"""Random fire: requests without pause, faults without pause, and every few minutes a breath.

Everything is drawn from the seed; what the processes make of it is theirs. In a breath all faults
are mended, all operations end by themselves, and nothing may be wrong.
"""

import gc
import json
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from lab.errors import LabError
from tests.chaos.checker.checker import Checker, Violation
from tests.chaos.checker.consoles import ConsoleWatch
from tests.chaos.fire.acts import list_guests
from tests.chaos.fire.callers import Asked
from tests.chaos.fire.gamekeeper import Gamekeeper
from tests.chaos.fire.journal import Journal
from tests.chaos.fire.records import Records
from tests.chaos.fire.recovery import RecoveryClock
from tests.chaos.fire.report import print_report
from tests.chaos.fire.strikes import draw_strikes, draw_traps
from tests.chaos.fire.traffic import Traffic
from tests.chaos.fire.truth import Truth
from tests.chaos.patience import comes_true
from tests.chaos.stage import Stage, set_stage

HOSTS = 3
LEASE_S = 5.0
BURN_S = 100.0
"""How long it burns between two breaths."""
QUIET_AFTER_S = 120.0
"""How long after the last mending an operation may still live; far less than its deadline."""

SLOW_MS = 15_000.0


@dataclass
class Fire:
    """One run.

    Args:
        stage: what burns.
        seed: of everything that is drawn.
    """

    stage: Stage
    seed: int
    journal: Journal
    began_at: float = field(default_factory=time.monotonic)
    violations: list[Violation] = field(default_factory=list)
    is_over: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    _judged: int = 0
    _slow_told: int = 0

    def __post_init__(self) -> None:
        guests = list_guests()
        self.guests = [guest.name for guest in guests]
        self.traffic = Traffic(self.stage, guests, str(self.seed), self.journal)
        self.recovery = RecoveryClock(self.stage.database_url)
        self.checker = Checker(self.stage.lab)
        self.keeper = Gamekeeper(self.stage, self.recovery, self.journal, self.checker)
        self.records = Records(self.stage.database_url)
        self.truth = Truth(self.records, self.journal)

    def burn(self, minutes: float) -> None:
        """Burn and breathe by turns until the time is over, somebody stops it or the lab dies."""
        hosts = self.stage.lab.hosts
        strikes = draw_strikes(str(self.seed), hosts, self.guests, lease_s=LEASE_S)
        traps = draw_traps(str(self.seed))
        end_at = self.began_at + minutes * 60
        with ConsoleWatch(self.stage.lab) as consoles:
            self.traffic.start()
            while not self.is_over:
                self.keeper.begin(strikes, traps)
                self.stop.wait(max(5.0, min(BURN_S, end_at - time.monotonic() - 20)))
                self.is_over = self.stop.is_set() or time.monotonic() >= end_at - 30
                self._breathe(consoles)
                self.traffic.flow()
            self.traffic.end()

    def _breathe(self, consoles: ConsoleWatch) -> None:
        self.journal.say("BREATH: no new acts, everything is mended")
        self.traffic.pause()
        try:
            self.keeper.end()
        except (LabError, TimeoutError) as exc:
            self._blame("mends", f"what was broken does not come back: {exc}")
            self.is_over = True
            return
        finally:
            for violation in self.keeper.inquest.violations:
                self._add(violation)
        mended_at = time.monotonic()
        for name in self.traffic.wait_idle(QUIET_AFTER_S):
            self._blame("wait_ends", f"the act of {name} has not ended {QUIET_AFTER_S:g} s later")
        left_s = QUIET_AFTER_S - (time.monotonic() - mended_at)
        comes_true(lambda: not self.records.list_live(), left_s, every_s=0.2)
        for row in self.records.list_live():
            what = f"{row.kind} {row.id} is {row.state}, {QUIET_AFTER_S:g} s after all was mended"
            self._blame("operation_ends", what, self.records.tell(row.id))
        self.journal.say(f"quiet {time.monotonic() - mended_at:.1f} s after the mending")
        self._judge(consoles)
        self._tell_slow()
        self.journal.say(f"breath is over, {len(self.violations)} violations so far")

    def _judge(self, consoles: ConsoleWatch) -> None:
        self.keeper.tell_redis_loss()
        for violation in self.checker.check(settled=True):
            self._add(violation)
        for violation in consoles.violations():
            self._add(violation)
        asked = self.traffic.asked
        fresh, self._judged = asked[self._judged :], len(asked)
        for violation in self.truth.judge(fresh, self.keeper.harms):
            self._add(violation)
        for violation in self.truth.judge_guests(self.guests, self.keeper.dead_guests):
            self._add(violation)

    def _tell_slow(self) -> None:
        """Tell the stories of what took long to go on: no violation, but worth a look."""
        for recovery in self.recovery.find_slow(SLOW_MS)[self._slow_told :]:
            self._slow_told += 1
            self.journal.say(f"SLOW {recovery.role}: {recovery.from_kill_ms:.0f} ms")
            for line in self.records.tell(recovery.operation_id):
                self.journal.say(f"    {line}")

    def _blame(self, invariant: str, what: str, timeline: list[str] | None = None) -> None:
        self._add(Violation(invariant, what, timeline or []))

    def _add(self, violation: Violation) -> None:
        known = {(one.invariant, one.what) for one in self.violations}
        if (violation.invariant, violation.what) not in known:
            self.violations.append(violation)
            self.journal.say(f"VIOLATION {violation.invariant}: {violation.what}")

    def report(self) -> dict[str, Any]:
        """Return what came of it, as JSON."""
        asked = self.traffic.asked
        keeper, recovery = self.keeper, self.recovery
        return {
            "seed": self.seed,
            "minutes": round((time.monotonic() - self.began_at) / 60, 2),
            "operations": len(asked),
            "outcomes": _count(one.answer.code if one.answer else "open" for one in asked),
            "faults": dict(sorted(keeper.counts.items())),
            "recovery_ms": recovery.figures_ms(),
            "violations": [violation.to_json() for violation in self.violations],
            "kinds": _count(one.verb for one in asked),
            "ways": _count(_way(one) for one in asked),
            "faults_missed": dict(sorted(keeper.missed.items())),
            "crash_points": dict(sorted(keeper.points.items())),
            "recovery_from_restart_ms": recovery.figures_from_restart_ms(),
            "recoveries": len(recovery.found),
            "unrecovered": [f"{role} {operation}" for role, operation in recovery.unmoved],
            "gamekeeper_defects": keeper.defects,
        }

    def save(self, report: dict[str, Any]) -> Path:
        """Keep the lab's logs, the journal and the report; return where."""
        directory = Path(mkdtemp(prefix=f"innkeeper-fire-{self.seed}-", dir="/var/tmp"))
        shutil.copytree(self.stage.lab.layout.logs, directory / "logs", dirs_exist_ok=True)
        self.journal.save(directory / "journal.txt")
        (directory / "report.json").write_text(json.dumps(report, indent=1, default=str))
        return directory


def run_fire(minutes: float, seed: int, as_json: bool) -> int:
    """Burn for some minutes.

    Args:
        minutes: how long, breaths included.
        seed: of everything that is drawn.
        as_json: print one JSON object instead of a report for people.

    Returns:
        The exit code: 1 when anything was wrong.
    """
    journal = Journal(sys.stderr)
    with set_stage(hosts=HOSTS, bent=True, lease_s=LEASE_S) as stage:
        fire = Fire(stage, seed, journal)
        with _stopped_by_hand(fire.stop), suppress(KeyboardInterrupt):
            fire.burn(minutes)
        fire.recovery.join(5.0)
        # Celery's results speak to Redis when they are collected; later it is not there.
        gc.collect()
        report = fire.report()
        if fire.violations or fire.keeper.defects:
            journal.say(f"logs and journal are in {fire.save(report)}")
    if as_json:
        print(json.dumps(report, default=str))
    else:
        print_report(report)
    return 1 if fire.violations else 0


@contextmanager
def _stopped_by_hand(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C end the fire in order; the second one is Python's own."""

    def on_interrupt(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _way(asked: Asked) -> str:
    return "rival" if asked.is_rival else asked.way


def _count(words: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
