"""What a drain does next: pure functions of who is on the host and what became of whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from innkeeper.states import InstanceState, OperationState
from models.children import Child
from models.drains import GuestOnHost

MOVABLE_STATES = frozenset({InstanceState.ACTIVE, InstanceState.PAUSED})
# A guest that has come back after it was moved is moved again, but not for ever.
MOST_MOVES = 3


class Stand(StrEnum):
    """How a guest stands with a drain."""

    TO_MOVE = "to_move"
    MOVING = "moving"
    WAITS = "waits"
    MOVED = "moved"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    STAYS = "stays"


UNDER_WAY = frozenset({Stand.TO_MOVE, Stand.MOVING, Stand.WAITS})


@dataclass(frozen=True, slots=True)
class Case:
    """One guest of a drain.

    Args:
        instance_id: the guest.
        name: its name.
        stand: how it stands.
        why: for people, where there is something to say.
        child: the last migration that was asked for it.
        moves: how many were.
        error: why it was not moved.
    """

    instance_id: UUID
    name: str
    stand: Stand
    why: str | None = None
    child: Child | None = None
    moves: int = 0
    error: dict[str, Any] | None = None


def judge(
    host: str,
    guests: Sequence[GuestOnHost],
    children: Sequence[Child],
    refused: Mapping[str, Mapping[str, Any]],
) -> list[Case]:
    """Return every guest that the drain has to do with, by name.

    Args:
        host: the host that is emptied.
        guests: who is there now, or on the way there.
        children: the drain's migrations, the oldest first.
        refused: ``{instance, error}`` of those that could not be asked to move, by UUID.
    """
    here = {guest.id: guest for guest in guests}
    by_guest: dict[UUID, list[Child]] = {}
    for child in children:
        if child.instance_id is not None:
            by_guest.setdefault(child.instance_id, []).append(child)
    cases = [
        _judge_guest(host, guest, by_guest.get(guest.id, []), refused.get(str(guest.id)))
        for guest in guests
    ]
    for instance_id, moves in by_guest.items():
        if instance_id not in here:
            last = moves[-1]
            # Also one whose migration failed has left, by another operation.
            stand = Stand.MOVED if last.state.is_final else Stand.MOVING
            cases.append(Case(instance_id, str(last.name), stand, child=last, moves=len(moves)))
    return sorted(cases, key=lambda case: case.name)


def _judge_guest(
    host: str, guest: GuestOnHost, moves: Sequence[Child], refused: Mapping[str, Any] | None
) -> Case:
    last = moves[-1] if moves else None

    def case(stand: Stand, why: str | None = None, error: dict[str, Any] | None = None) -> Case:
        return Case(guest.id, guest.name, stand, why, last, len(moves), error)

    if last is not None and not last.state.is_final:
        return case(Stand.MOVING)
    if last is not None and last.state is OperationState.CANCELLED:
        return case(Stand.CANCELLED, "its migration was cancelled", last.error)
    if last is not None and last.state is OperationState.FAILED:
        return case(Stand.FAILED, str((last.error or {}).get("message", "")), last.error)
    if refused is not None:
        error = dict(refused["error"])
        return case(Stand.REFUSED, str(error.get("message", "")), error)
    if guest.holder is not None:
        return case(Stand.WAITS, f"held by {guest.holder}")
    if guest.state is InstanceState.UNKNOWN:
        return case(Stand.STAYS, "nobody knows whether it is here")
    if guest.host != host:
        # A claim without a holder heals within a sync.
        return case(Stand.WAITS, "its claim is being healed")
    if guest.state not in MOVABLE_STATES:
        return case(Stand.STAYS, f"it is {guest.state.value}: only guests that run are moved")
    if len(moves) >= MOST_MOVES:
        return case(Stand.FAILED, f"it has come back {len(moves)} times")
    return case(Stand.TO_MOVE)


def choose_next(cases: Sequence[Case], *, concurrency: int) -> list[Case]:
    """Return the guests to be asked to move now."""
    room = concurrency - sum(case.stand is Stand.MOVING for case in cases)
    waiting = [case for case in cases if case.stand is Stand.TO_MOVE]
    return waiting[: max(room, 0)]


def count(cases: Sequence[Case], *stands: Stand) -> int:
    """Count the guests that stand so."""
    return sum(case.stand in stands for case in cases)


def describe_progress(cases: Sequence[Case]) -> tuple[float, str]:
    """Return how much of a drain is over, 0…1, and a line for people."""
    concerned = [case for case in cases if case.stand is not Stand.STAYS]
    over = [case for case in concerned if case.stand not in UNDER_WAY]
    parts = [f"{count(cases, Stand.MOVED)} of {len(concerned)} guests moved"]
    for stands, said in (
        ((Stand.MOVING,), "under way"),
        ((Stand.WAITS,), "held by other operations"),
        ((Stand.FAILED, Stand.CANCELLED, Stand.REFUSED), "could not be moved"),
        ((Stand.STAYS,), "stay: they do not run"),
    ):
        if number := count(cases, *stands):
            parts.append(f"{number} {said}")
    return (len(over) / len(concerned) if concerned else 1.0), ", ".join(parts)


def describe_wait(cases: Sequence[Case]) -> str:
    """Return what a drain waits for, for people."""
    moving = count(cases, Stand.MOVING)
    held = [f"{case.name} ({case.why})" for case in cases if case.stand is Stand.WAITS]
    parts = [f"{moving} migration{'s' if moving > 1 else ''} to end"] if moving else []
    if held:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        parts.append(f"{', '.join(held[:3])}{more} to be free")
    return "; ".join(parts) or "room"


def tell(case: Case) -> dict[str, Any]:
    """Return a guest's line in the result of a drain."""
    child = case.child
    figures = (child.result if child is not None else None) or {}
    error = case.error
    is_moved = case.stand is Stand.MOVED
    return {
        "instance": case.name,
        "instance_id": str(case.instance_id),
        "operation_id": None if child is None else str(child.operation_id),
        "outcome": case.stand.value,
        "dst": child.dst_host if child is not None and is_moved else None,
        "total_ms": figures.get("total_ms"),
        "downtime_ms": figures.get("downtime_ms"),
        "why": case.why,
        "error": error
        and {
            key: error.get(key) for key in ("code", "message", "hint", "effect") if error.get(key)
        },
    }


def summarize(host: str, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the result of a drain: counts, and a line for each guest."""
    left = (Stand.FAILED, Stand.CANCELLED, Stand.REFUSED)
    return {
        "drained_host": host,
        "moved": count(cases, Stand.MOVED),
        "not_moved": count(cases, *left, *UNDER_WAY),
        "stay": count(cases, Stand.STAYS),
        "is_empty_of_running": count(cases, *left, *UNDER_WAY) == 0,
        "guests": [tell(case) for case in cases],
    }
