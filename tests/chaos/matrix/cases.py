"""The matrix of crash points: every boundary of every step × who dies there.

The cases are derived from the workflows. A new step, a new verb or a new moment brings its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tasks.catalogue import WORKFLOWS
from tasks.crashpoints import FAILURE_MOMENTS, CrashPoint, list_points
from tasks.requests import ACCEPT
from tasks.workflow import Workflow
from tests.chaos.matrix.routes import SWEPT_KIND, Route, Turn, find_route, is_past_return

SWEEP = "sweep"


class Victim(StrEnum):
    """Who dies.

    self: the process that passes the point.
    control: the control worker, while the other process is held at the point.
    """

    SELF = "self"
    CONTROL = "control"


class Plot(StrEnum):
    """What else is the matter.

    plain: the dead process is started again at once.
    cancel: somebody cancels the operation in the very moment.
    alone: the dead process stays dead until the operation has ended; another control worker runs.
    """

    PLAIN = "plain"
    CANCEL = "cancel"
    ALONE = "alone"


SUCCEEDED = frozenset({"succeeded"})
CANCELLED = frozenset({"cancelled"})
FAILED = frozenset({"failed"})

VARIANTS = {
    "live_migrate": ("live_migrate[block]", "live_migrate[shared]", "live_migrate[mixed]"),
}
"""Kinds of operations that take different ways on different pools, and what those are called."""

FILES = "spawn[files]"
FILES_STEP = "inject_files"
"""A spawn whose guest is waited for until its agent writes files: only for the step that does."""

DEATHS = frozenset({"evacuate", "evacuate_instance"})
"""Kinds that take a dead host: the guest's dies before the request, and returns after the case."""

POOLS = {"live_migrate[shared]": "shared", **dict.fromkeys(DEATHS, "shared")}
LAST_DISKS_POOLS = dict.fromkeys(("live_migrate[mixed]", "spawn", "delete"), "shared")
"""Where the last disk of a guest is elsewhere than the others."""

KINDS_ELSEWHERE = {
    "prefetch": "no request begins it; tests/workflow/test_hydration_killed.py goes through it",
    "events": "no operation waits for it; tests/workflow/test_events.py goes through it",
}
CHOICE_STEPS = frozenset({"check_candidate", "choose_destination"})
"""Steps of a migration that are only planned where there are several destinations."""

LEFT_OUT: dict[str, frozenset[str]] = {
    "spawn": frozenset({FILES_STEP}),
    **dict.fromkeys(VARIANTS["live_migrate"], CHOICE_STEPS),
}
"""Steps that the operations of a label are not planned with."""

UNREACHABLE: dict[str, str] = {
    point.name: KINDS_ELSEWHERE[point.kind]
    for point in list_points(WORKFLOWS, ACCEPT)
    if point.kind in KINDS_ELSEWHERE
} | {
    point.name: "takes three hosts: tests/workflow/test_candidates.py goes through it"
    for point in list_points(WORKFLOWS, ())
    if point.kind == "live_migrate" and point.step in CHOICE_STEPS
}
"""Points that no operation can be led to, and why. They have no cases."""


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix.

    Args:
        label: the kind of operation, with the way it takes: ``live_migrate[block]``.
        point: where a process dies.
        victim: which.
        plot: what else is the matter.
        route: how the operation is led there.
        expects: the states in which the operation may end.
    """

    label: str
    point: CrashPoint
    victim: Victim
    plot: Plot
    route: Route
    expects: frozenset[str]

    @property
    def id(self) -> str:
        """A readable name, stable as long as the workflow's names are."""
        kind = self.point.kind
        shown = self.point.name if kind == SWEEP else self.point.name.replace(kind, self.label, 1)
        return f"{shown}/{self.victim}" + ("" if self.plot is Plot.PLAIN else f"/{self.plot}")

    @property
    def kind(self) -> str:
        """The kind of the operation that is led to the point."""
        return SWEPT_KIND if self.point.kind == SWEEP else self.point.kind

    @property
    def pool(self) -> str:
        """The storage pool of the guest."""
        return POOLS.get(self.label, "local")

    @property
    def last_disks_pool(self) -> str:
        """The storage pool of its last disk."""
        return LAST_DISKS_POOLS.get(self.label, self.pool)


def all_points() -> list[CrashPoint]:
    """Return every crash point of this release."""
    return list_points(WORKFLOWS, ACCEPT)


def all_cases() -> list[Case]:
    """Return the whole matrix; those that need a second control worker stand last."""
    workflows = {workflow.kind: workflow for workflow in WORKFLOWS}
    points = [point for point in all_points() if point.name not in UNREACHABLE]
    labelled = [(label, point) for point in points for label in _list_labels(point)]
    cases: list[Case] = []
    for victim in Victim:
        for label, point in labelled:
            workflow = workflows.get(point.kind)
            left_out = LEFT_OUT.get(label)
            if left_out and workflow is not None:
                steps = tuple(step for step in workflow.steps if step.name not in left_out)
                workflow = replace(workflow, steps=steps)
            cases += _cases_at(label, point, victim, workflow)
    # A stable sort: cases of one kind share a guest, so they stand together.
    order = list(dict.fromkeys(label for label, _ in labelled))
    return sorted(cases, key=lambda case: (case.plot is Plot.ALONE, order.index(case.label)))


def _list_labels(point: CrashPoint) -> tuple[str, ...]:
    if point.kind == "spawn" and point.step == FILES_STEP:
        return (FILES,)
    return VARIANTS.get(point.kind, (point.kind,))


def fast_slice(cases: Sequence[Case]) -> list[Case]:
    """Return few cases of every corner: each step once on its way there, once on its way back.

    Of each kind of operation one is cancelled and one fails. Victims and moments rotate, so that
    neighbours differ in both. None of them has a host that dies, which takes ten seconds to return:
    tests/workflow/test_evacuate.py lets a process die in every step of an evacuation.
    """
    corners: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        if case.kind in DEATHS:
            continue
        if case.victim is Victim.SELF and case.plot is not Plot.ALONE:
            corners.setdefault(_corner(case), []).append(case)
    by_id = {case.id: case for case in cases}
    chosen: list[Case] = []
    # Corners of one size have the same moments, as a rule.
    seen = Counter[int]()
    for number, corner in enumerate(corners.values()):
        is_cancelled = corner[0].plot is Plot.CANCEL
        case = corner[(number if is_cancelled else seen[len(corner)]) % len(corner)]
        seen[len(corner)] += not is_cancelled
        other = case.id.replace(f"/{Victim.SELF}", f"/{Victim.CONTROL}")
        chosen.append(by_id[other] if number % 3 == 2 else case)
    return chosen


def _corner(case: Case) -> tuple[str, ...]:
    if case.plot is Plot.CANCEL:
        return (case.kind, case.plot)
    # How a step fails or is undone hardly depends on the pool.
    if case.point.moment in FAILURE_MOMENTS:
        return (case.kind, "fails")
    if case.point.is_undo:
        return (case.kind, f"{case.point.step}", "undo")
    is_swept = case.point.kind == SWEEP
    return (case.label, case.point.step or (case.point.name if is_swept else "beside its steps"))


def _cases_at(
    label: str, point: CrashPoint, victim: Victim, workflow: Workflow | None
) -> list[Case]:
    route = find_route(point, workflow)
    expects = _expect(route, point, victim, workflow)
    cases = [Case(label, point, victim, Plot.PLAIN, route, expects)]
    if _is_crossed(point):
        crossed = Route(Turn.CANCEL, point.name)
        expects_crossed = _expect_crossed(point, victim, workflow)
        cases.append(Case(label, point, victim, Plot.CANCEL, crossed, expects_crossed))
    if point.step is None and victim is Victim.SELF:
        cases.append(Case(label, point, victim, Plot.ALONE, route, expects))
    return cases


def _expect(
    route: Route, point: CrashPoint, victim: Victim, workflow: Workflow | None
) -> frozenset[str]:
    if route.turn in (Turn.CANCEL, Turn.PART, Turn.STRAY):
        return CANCELLED
    if point.kind in DEATHS:
        # One guest that cannot be moved fails nobody else; what became of it is looked at.
        return SUCCEEDED
    if route.turn is Turn.NAMESAKE:
        return FAILED
    if route.turn is Turn.OBSTACLE and workflow is not None and workflow.may_fail_late:
        # A failure that dies before it is written is tried again, and the obstacle is gone then.
        is_forgotten = victim is Victim.SELF and point.moment == "failing"
        return SUCCEEDED if is_forgotten else FAILED
    return SUCCEEDED


def _is_crossed(point: CrashPoint) -> bool:
    """Tell whether a cancel in that very moment makes a case of its own."""
    if point.step is None:
        # Before it there is nothing to cancel, and after it nothing is left to be cancelled.
        return point.moment == "accepted"
    return not point.is_undo and point.moment not in FAILURE_MOMENTS


def _expect_crossed(point: CrashPoint, victim: Victim, workflow: Workflow | None) -> frozenset[str]:
    if workflow is None or point.step is None:
        return CANCELLED
    if point.kind == "evacuate_instance":
        # The whole is cancelled, and may be over before it hears of that.
        return SUCCEEDED | CANCELLED
    if is_past_return(workflow, point.step, point.moment):
        return SUCCEEDED
    # What lives may go on to the end before it hears of the cancel: the step's own thread, and
    # libvirt with a migration that it has begun.
    # Control may die with the cancel itself in its hand, which is then told that nobody answered.
    is_unsure = (
        victim is Victim.CONTROL
        or point.on == "control"
        or point.name == "live_migrate.migrate:inside"
    )
    return SUCCEEDED | CANCELLED if is_unsure else CANCELLED
