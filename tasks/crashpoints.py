"""Lets tests kill, hold or fail a process at a named boundary; costs one comparison otherwise.

``INNKEEPER_CRASH_DIR`` names a directory. A file in it that bears a point's name arms that point
for one pass: the process that comes by takes the file away and then does what is written in it:

``kill``  it kills itself with SIGKILL;
``hold``  it makes the file ``<point>.held`` and waits until somebody removes that;
``fail``  it gets the operating system's error of a full disk.

A point is ``<where>:<moment>``, for example ``spawn.define_domain:acted``. `list_points` names all
of them, derived from the workflows, so that a new step brings its own.
"""

import errno
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.workflow import StepSpec, Workflow

_DIRECTORY = os.environ.get("INNKEEPER_CRASH_DIR")
LONGEST_HOLD_S = 300.0

STEP_MOMENTS = {
    "claiming": "the claim is written, its transaction not committed",
    "claimed": "the claim is committed",
    "acting": "the guest's lock is held and its epoch checked, nothing is done yet",
    "inside": "the effect has begun",
    "acted": "the effect is there, the ledger does not know yet",
    "recording": "the ledger is written, its transaction not committed",
    "recorded": "the ledger is committed, the next bell not rung",
}
FAILURE_MOMENTS = {
    "failing": "the failure is written, its transaction not committed",
    "failed": "the failure is committed, the bell of the way back not rung",
}
REQUEST_MOMENTS = {
    "accepting": "the operation is written, its transaction not committed",
    "accepted": "the operation is committed, its bell not rung",
}
OUTCOME_MOMENTS = {
    "publishing": "the operation has ended, nobody has been told",
    "published": "the outcome is stored, the record of that is not",
}
SWEEP_MOMENTS = {
    "turning": "a strayed operation is about to be turned back",
    "ringing": "bells are marked as rung and not sent",
}
RELAY_MOMENTS = {
    "relaying": "events have their positions, Redis has not got them",
    "relayed": "Redis has the events, the record of that is not written",
}


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """A boundary at which a process can be made to die.

    Args:
        name: ``<where>:<moment>``.
        kind: the workflow's kind; ``sweep`` for the sweeper's, ``events`` for the relay's.
        step: the step; None for requests, outcomes and the sweeper.
        moment: which boundary.
        is_undo: whether it lies on the way back.
        on: ``src``, ``dst`` or ``control``: whose worker passes it.
        meaning: what is true there.
    """

    name: str
    kind: str
    step: str | None
    moment: str
    is_undo: bool
    on: str
    meaning: str


def crash_point(where: str, moment: str) -> None:
    """Die, wait or fail here if a test asked for it."""
    if _DIRECTORY is not None:
        _strike(Path(_DIRECTORY), f"{where}:{moment}")


def _strike(directory: Path, point: str) -> None:
    armed = directory / point
    taken = directory / f"{point}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        # Of several processes that come by, the kernel lets one have the file.
        armed.rename(taken)
        wish = taken.read_text().strip()
        taken.unlink()
    except FileNotFoundError:
        return
    if wish == "hold":
        held = directory / f"{point}.held"
        held.touch()
        give_up_at = time.monotonic() + LONGEST_HOLD_S
        while held.exists() and time.monotonic() < give_up_at:
            time.sleep(0.005)
        return
    (directory / f"{point}.struck").touch()
    if wish == "fail":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGKILL)


def list_points(workflows: Iterable[Workflow], requests: Iterable[str]) -> list[CrashPoint]:
    """Return every boundary of every step, request, outcome, sweep and of the relay of events.

    Args:
        workflows: the release's workflows.
        requests: the kinds of operations that can be asked for.
    """
    points: list[CrashPoint] = []
    for kind in requests:
        points += _of_control(f"request.{kind}", kind, REQUEST_MOMENTS)
    for workflow in workflows:
        for step in workflow.steps:
            points += _of_step(workflow, step)
        points += _of_control(f"outcome.{workflow.kind}", workflow.kind, OUTCOME_MOMENTS)
    points += _of_control("sweep", "sweep", SWEEP_MOMENTS)
    return [*points, *_of_control("events", "events", RELAY_MOMENTS)]


def _of_step(workflow: Workflow, step: StepSpec) -> list[CrashPoint]:
    where = f"{workflow.kind}.{step.name}"
    ways = [(where, STEP_MOMENTS | FAILURE_MOMENTS, False)]
    if step.undo is not None:
        ways.append((f"{where}.undo", STEP_MOMENTS, True))
    return [
        CrashPoint(
            f"{place}:{moment}", workflow.kind, step.name, moment, is_undo, step.on.value, meaning
        )
        for place, moments, is_undo in ways
        for moment, meaning in moments.items()
    ]


def _of_control(where: str, kind: str, moments: dict[str, str]) -> list[CrashPoint]:
    return [
        CrashPoint(f"{where}:{moment}", kind, None, moment, False, "control", meaning)
        for moment, meaning in moments.items()
    ]
