"""Lines of waiting, as a pure function: who may begin, and where in which line the others stand.

Everybody passes the lines of what he needs in one order, the narrowest first. At each the earlier
ticket goes first. Who has got a place in one line keeps it while he stands in the next, so nobody
who came later passes him there; and who still stands in an earlier line holds up nobody in a later
one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Room:
    """Something that takes only so many at once.

    Args:
        name: what it is, and whose: rooms of one name are one.
        limit: how many it takes.
    """

    name: tuple[str, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class Wish:
    """One that needs a place in some rooms.

    Args:
        operation_id: who.
        rooms: in the order in which their lines are passed.
        is_inside: whether he has his places already.
    """

    operation_id: UUID
    rooms: tuple[Room, ...]
    is_inside: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Where one stands.

    Args:
        room: before which.
        place: 1 for the first in its line.
        inside: how many are in that room.
    """

    room: Room
    place: int
    inside: int


def form_lines(wishes: Iterable[Wish]) -> dict[UUID, Wait | None]:
    """Return for everybody who is not inside where he stands; None says that he may begin.

    Args:
        wishes: in the order of their tickets.
    """
    wishes = list(wishes)
    inside = Counter(room.name for wish in wishes if wish.is_inside for room in wish.rooms)
    taken = Counter(inside)
    waiting = Counter[tuple[str, ...]]()
    stands: dict[UUID, Wait | None] = {}
    for wish in wishes:
        if wish.is_inside:
            continue
        stands[wish.operation_id] = None
        for room in wish.rooms:
            if taken[room.name] >= room.limit:
                waiting[room.name] += 1
                stands[wish.operation_id] = Wait(room, waiting[room.name], inside[room.name])
                break
            taken[room.name] += 1
    return stands


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{suffix or 'th'}"
