"""Every fault of the surroundings in every phase of a spawn and of a migration.

A phase is a crash point at which the process is held while the fault strikes. Then it is let go
with the fault still there, and the fault is mended.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from innkeeper.errors import InnkeeperError
from lab.errors import LabError
from tests.chaos.asking import Ask, Outcome, ask_typed
from tests.chaos.checker.checker import Checker, format_violations
from tests.chaos.checker.ledger_look import connect
from tests.chaos.checker.timeline import tell_operation
from tests.chaos.faults.catalogue import list_faults
from tests.chaos.faults.fault import Fault, MissedError, family_of
from tests.chaos.matrix.case_result import NotHeld
from tests.chaos.matrix.cases import POOLS, UNREACHABLE, VARIANTS, all_points
from tests.chaos.matrix.verdict import UNDONE
from tests.chaos.patience import comes_true
from tests.chaos.scene import Scene, is_gone, is_settled_on, look_at
from tests.chaos.stage import LEASE_S, Stage

KINDS = ("spawn", "live_migrate")
MOMENTS = ("acting", "inside", "acted")
REACH_S = 30.0
OUTCOME_S = 100.0
SETTLE_S = 15.0
# Longer than every time-out of a socket.
REDIS_STOP_S = 30.0
# With these an operation may fail, as long as it is undone and says so; with others it must not.
MAY_FAIL = ("libvirtd_killed", "qemu_killed", "network_cut:src:dst", "finish_reply_lost")
# Nothing is known of the guest's power then but by the independent checker.
KILLS_GUESTS = ("qemu_killed",)
# What breaks around a migration hardly depends on which disks travel; deaths are the matrix's.
LEFT_OUT = frozenset({"live_migrate[mixed]"})


@dataclass(frozen=True, slots=True)
class SurroundingsCase:
    """A phase and a fault.

    Args:
        label: the kind of operation: ``spawn``, ``live_migrate[block]``, ``live_migrate[shared]``.
        point: the crash point that is the phase.
        fault: its name, with ``src`` and ``dst`` for hosts; a spawn has only ``src``.
    """

    label: str
    point: str
    fault: str

    @property
    def kind(self) -> str:
        """The kind of the operation."""
        return self.label.partition("[")[0]

    @property
    def phase(self) -> str:
        """The crash point, with the label in the place of the kind."""
        return self.point.replace(self.kind, self.label, 1)

    @property
    def id(self) -> str:
        """A readable, stable name."""
        return f"{self.phase}/{self.fault}"

    @property
    def may_fail(self) -> bool:
        """Whether the operation may fail and be undone."""
        return self.fault.startswith(MAY_FAIL)


@dataclass(frozen=True, slots=True)
class SurroundingsResult:
    """What became of a case.

    Args:
        verdict: ``held``, ``not held``, or ``missed`` when there was nothing to strike.
        why: what did not hold, or was missed.
        outcome: the state or the error's code that the client was told.
    """

    case: str
    phase: str
    fault: str
    verdict: str
    why: str
    outcome: str
    elapsed_ms: float
    timeline: tuple[str, ...] = ()


def list_cases() -> list[SurroundingsCase]:
    """Return the whole product, of one kind of operation after the other."""
    phases = [
        (label, point.name)
        for kind in KINDS
        for label in VARIANTS.get(kind, (kind,))
        if label not in LEFT_OUT
        for point in all_points()
        if point.kind == kind and point.moment in MOMENTS and point.step and not point.is_undo
        if point.name not in UNREACHABLE
    ]
    names = [fault.name for fault in _list_faults(("src", "dst"))]
    cases = [SurroundingsCase(label, point, name) for label, point in phases for name in names]
    return [case for case in cases if _is_meant(case)]


def _list_faults(hosts: Sequence[str]) -> list[Fault]:
    return list_faults(hosts, lease_s=LEASE_S, redis_stop_s=REDIS_STOP_S)


def _is_meant(case: SurroundingsCase) -> bool:
    if case.fault.startswith("finish_reply_lost"):
        # It strikes the one moment that it is made for, by itself.
        return (case.point, case.fault) == (
            "live_migrate.migrate:acting",
            "finish_reply_lost:src:dst",
        )
    return case.kind != "spawn" or ":dst" not in case.fault


def find_case(identifier: str) -> SurroundingsCase:
    """Return the case of an id.

    Raises:
        KeyError: there is none.
    """
    for case in list_cases():
        if case.id == identifier:
            return case
    raise KeyError(identifier)


def run_case(stage: Stage, case: SurroundingsCase) -> SurroundingsResult:
    """Run a case; afterwards the stage is fit for the next, whatever has happened.

    Args:
        stage: two hosts and a Redis that can be bent.
        case: what to run.
    """
    run = _Run(stage, case)
    began_at = time.monotonic()
    verdict, why, timeline = "held", "", []
    try:
        run.play()
    except MissedError as exc:
        verdict, why = "missed", str(exc)
    except (NotHeld, InnkeeperError, LabError, TimeoutError) as exc:
        verdict, why = "not held", f"{type(exc).__name__}: {exc}"
        timeline = run.tell()
    run.clean_up(is_suspect=verdict == "not held")
    return SurroundingsResult(
        case=case.id,
        phase=case.phase,
        fault=case.fault,
        verdict=verdict,
        why=why,
        outcome="" if run.told is None else run.told.code or "succeeded",
        elapsed_ms=round((time.monotonic() - began_at) * 1000, 1),
        timeline=tuple(timeline),
    )


def lost(case: SurroundingsCase, error: Exception) -> SurroundingsResult:
    """Return what became of a case under which the lab broke."""
    return SurroundingsResult(
        case=case.id,
        phase=case.phase,
        fault=case.fault,
        verdict="not held",
        why=f"the lab was lost: {type(error).__name__}: {error}",
        outcome="",
        elapsed_ms=0.0,
    )


class _Run:
    """One case under way."""

    def __init__(self, stage: Stage, case: SurroundingsCase) -> None:
        self.told: Outcome | None = None
        self._stage = stage
        self._case = case
        self._src, self._dst = stage.lab.hosts[:2]
        self._checker = Checker(stage.lab)
        self._operation_id: UUID | None = None
        self._guest = f"s-{uuid.uuid4().hex[:8]}"

    def play(self) -> None:
        case, stage, crash = self._case, self._stage, self._stage.crash
        ask = self._prepare()
        fault = self._find_fault()
        crash.arm_hold(case.point)
        waiter = ask_typed(stage.client, ask, timeout_s=OUTCOME_S)
        self._operation_id = waiter.operation_id
        if not crash.wait_held(case.point, timeout_s=REACH_S):
            raise NotHeld(f"not reached: nobody came to {case.point}")
        if case.fault.startswith("finish_reply_lost"):
            crash.release(case.point)
        try:
            fault.strike(stage)
            if family_of(fault).startswith("redis_"):
                self._checker.note_redis_loss()
            # A frozen process goes on from here when it is thawed: that is the ghost.
            crash.release(case.point)
            time.sleep(fault.lasts_s)
        finally:
            fault.mend(stage)
            crash.release(case.point)
        self.told = waiter.find_outcome(OUTCOME_S)
        self._check()

    def _prepare(self) -> Ask:
        case, stage = self._case, self._stage
        fields = {
            **stage.boot_guest(),
            "host": self._src,
            "pool": POOLS.get(case.label, "local"),
        }
        if case.kind == "spawn":
            return Ask("spawn", self._guest, fields | {"wait": "console"})
        stage.client.spawn(name=self._guest, **fields).wait(60)
        return Ask("live_migrate", self._guest, {"dst": self._dst})

    def _find_fault(self) -> Fault:
        hosts = (self._src, self._dst)
        named, real = _list_faults(("src", "dst")), _list_faults(hosts)
        return next(
            fault for name, fault in zip(named, real, strict=True) if name.name == self._case.fault
        )

    def _check(self) -> None:
        with connect(self._stage.database_url) as connection:
            row = connection.execute(
                "SELECT state, result, error, instance_id FROM operations WHERE id = %s",
                (self._operation_id,),
            ).fetchone()
            if row is None:
                raise NotHeld(f"the request never became an operation; told {self.told}")
            error = row["error"] or {}
            truth = Outcome(row["result"], error.get("code"), error.get("effect"))
            if self.told is None:
                raise NotHeld(f"the client still waits; the operation is {row['state']}")
            if self.told != truth:
                raise NotHeld(f"the client was told {self.told}, the truth is {truth}")
            if row["state"] != "succeeded":
                if not self._case.may_fail:
                    raise NotHeld(f"it ended {row['state']}: {error}")
                if error.get("effect") not in UNDONE:
                    raise NotHeld(f"it ended with the effect {error.get('effect')}: {error}")
            self._check_scene(connection, row)
        if violations := self._checker.check(settled=True):
            raise NotHeld(format_violations(violations))

    def _check_scene(self, connection: Any, row: dict[str, Any]) -> None:
        if self._case.fault.startswith(KILLS_GUESTS):
            return
        has_succeeded = row["state"] == "succeeded"
        scene: Scene | None = None

        def is_right() -> bool:
            nonlocal scene
            scene = look_at(self._stage.lab, connection, self._guest, row["instance_id"])
            return self._is_right(scene, has_succeeded=has_succeeded)

        if not comes_true(is_right, SETTLE_S, every_s=0.1):
            raise NotHeld(f"it {row['state']}, and the guest is {scene}")

    def _is_right(self, scene: Scene, *, has_succeeded: bool) -> bool:
        if self._case.kind == "spawn":
            return is_settled_on(scene, self._src, "active") if has_succeeded else is_gone(scene)
        return is_settled_on(scene, self._dst if has_succeeded else self._src, "active")

    def tell(self) -> list[str]:
        """Return the operation's story."""
        if self._operation_id is None:
            return []
        return tell_operation(self._stage.database_url, self._operation_id)

    def clean_up(self, *, is_suspect: bool) -> None:
        """Leave no guest, no armed point and no dead role behind."""
        self._stage.crash.clear()
        if is_suspect:
            self._stage.lab.heal()
            self._stage.revive()
        with suppress(InnkeeperError):
            self._stage.ensure_deleted(self._guest)


def choose(only: Sequence[str], shard: str = "1/1") -> list[SurroundingsCase]:
    """Return the cases that are to be run.

    Args:
        only: substrings of ids; a case is chosen when it has one of them, all when there are none.
        shard: ``I/N``, every N-th case from the I-th on.
    """
    chosen = [case for case in list_cases() if not only or any(word in case.id for word in only)]
    index, count = (int(number) for number in shard.split("/"))
    return chosen[index - 1 :: count]
