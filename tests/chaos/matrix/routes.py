"""How an operation is led to a crash point: straight on, or turned round on its way."""

from dataclasses import dataclass
from enum import StrEnum

from tasks.crashpoints import FAILURE_MOMENTS, STEP_MOMENTS, CrashPoint
from tasks.workflow import Workflow


class Turn(StrEnum):
    """What is done to an operation while one of its processes is held.

    none: nothing, it goes straight on.
    cancel: somebody cancels it, which the next step sees at its claim.
    namesake: the destination gets a domain of the guest's name, and libvirt refuses the guest.
    obstacle: a directory lies where the step removes the console's log, so that it fails.
    hidden: the guest's root disk is away from its place, so that no host can take it.
    part: somebody cancels the whole while a part of it is held.
    stray: somebody cancels it while no step runs, so that it is the sweeper's to turn back.
    lost_bell: its bell is never rung, so that it is the sweeper's to ring.
    """

    NONE = "none"
    CANCEL = "cancel"
    NAMESAKE = "namesake"
    OBSTACLE = "obstacle"
    HIDDEN = "hidden"
    PART = "part"
    STRAY = "stray"
    LOST_BELL = "lost_bell"


# The process that is held stays where it is: it must not do what the sweeper is to do.
LEFT_HELD = frozenset({Turn.STRAY, Turn.LOST_BELL})


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a crash point.

    Args:
        turn: what turns the operation.
        hold_at: the point at which a process is held meanwhile; None when nothing turns it.
    """

    turn: Turn = Turn.NONE
    hold_at: str | None = None


POINT_OF_NO_RETURN = {
    "live_migrate": ("migrate", "acted"),
    "start": ("start_guest", "inside"),
    "stop": ("stop_guest", "inside"),
    "reboot": ("reboot_guest", "inside"),
    "delete": ("destroy_domain", "inside"),
    "hydrate": ("pivot_disk", "acted"),
}
"""The first point at which no cancel is taken any more; elsewhere the end of the last step."""

SWEPT_KIND = "reboot"
_SWEEPS = {
    "turning": Route(Turn.STRAY, f"request.{SWEPT_KIND}:accepted"),
    "ringing": Route(Turn.LOST_BELL, f"request.{SWEPT_KIND}:accepted"),
}
_EVACUATED = "evacuate_instance"
_EVACUATION_FAILS = {
    "find_files": Route(Turn.HIDDEN, "evacuate.settle_operations:acted"),
    "define_elsewhere": Route(Turn.NAMESAKE, f"{_EVACUATED}.define_elsewhere:acting"),
    "start_elsewhere": Route(Turn.OBSTACLE, f"{_EVACUATED}.start_elsewhere:acting"),
}
"""How each step of a guest's evacuation is made to fail; a cancel would be the whole's."""

_MIGRATION_FAILS = Route(Turn.NAMESAKE, "live_migrate.migrate:acting")


def find_route(point: CrashPoint, workflow: Workflow | None) -> Route:
    """Return the way to a point.

    Args:
        point: where a process is to die.
        workflow: its workflow; None for the sweeper's points.
    """
    if workflow is None:
        return _SWEEPS[point.moment]
    if point.step is None:
        return Route()
    if point.kind == _EVACUATED:
        fails = point.is_undo or point.moment in FAILURE_MOMENTS
        return _EVACUATION_FAILS[point.step] if fails else Route()
    if point.is_undo and point.kind == "drain":
        # Its only step with an undo ends the drain: it is turned round while a part is under way.
        return Route(Turn.PART, "live_migrate.migrate:acting")
    if point.is_undo:
        # The later it turns back, the more there is to undo.
        return _MIGRATION_FAILS if _is_migration(point) else _cancel_before(workflow, last=True)
    if point.moment not in FAILURE_MOMENTS:
        return Route()
    if _is_migration(point) and point.step == "settle_destination":
        # It comes after the point of no return, unless the guest has not gone.
        return _MIGRATION_FAILS
    if is_past_return(workflow, point.step, "claiming"):
        return Route(Turn.OBSTACLE, f"{workflow.kind}.{point.step}:acting")
    return _cancel_before(workflow, step=point.step)


def is_past_return(workflow: Workflow, step: str, moment: str) -> bool:
    """Tell whether a cancel comes too late at a boundary of a step's way forward."""
    names, moments = [spec.name for spec in workflow.steps], list(STEP_MOMENTS)
    last, first_moment = POINT_OF_NO_RETURN.get(workflow.kind, (names[-1], "recorded"))
    at = (names.index(step), moments.index(moment))
    return at >= (names.index(last), moments.index(first_moment))


def _is_migration(point: CrashPoint) -> bool:
    return point.kind == "live_migrate"


def _cancel_before(workflow: Workflow, *, step: str | None = None, last: bool = False) -> Route:
    """Cancel while the step before is held: the claim that follows is the first to see it."""
    names = [spec.name for spec in workflow.steps]
    position = len(names) - 1 if last or step is None else names.index(step)
    if position == 0:
        return Route(Turn.CANCEL, f"request.{workflow.kind}:accepted")
    return Route(Turn.CANCEL, f"{workflow.kind}.{names[position - 1]}:acted")
