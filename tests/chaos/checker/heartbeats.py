"""Whether a guest's heartbeats can be those of one guest that runs once. Pure.

A guest counts its heartbeats from zero at every boot and goes on counting when it moves. A second
copy of it goes on from the same number, so one of the two repeats what the other has said.

Consoles of several hosts are read one after the other, so the order of reading proves little. Each
beat carries the two moments between which it was written; only beats whose spans do not touch have
a certain order, and the others are put where they fit best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

FRESH_BOOT_MAX = 3
"""Highest counter at which a boot may be seen first: beats can be lost when a guest moves early."""
LOST_BEATS_MAX = 20
"""How many beats may be lost when a guest moves."""
MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat on a console.

    Args:
        host: whose console it stood on.
        counter: the guest's own count since its boot.
        after_s: it was not there yet at this moment.
        at_s: it was there at this moment; both by one monotonic clock.
    """

    host: str
    counter: int
    after_s: float
    at_s: float


def judge(beats: Sequence[Beat]) -> list[str]:
    """Return why these beats cannot be one guest's that runs once; empty when they can.

    Args:
        beats: of one guest; those of one host in the order in which they stood on its console.
    """
    texts = [text for text, _ in find_breaks(beats)]
    if len(texts) > MOST_TOLD:
        return [*texts[:MOST_TOLD], f"and {len(texts) - MOST_TOLD} more"]
    return texts


def find_breaks(beats: Sequence[Beat]) -> Iterator[tuple[str, list[Beat]]]:
    """Yield each break with the beats up to it, in the order in which they were put."""
    order = put_in_order(beats)
    said_on: dict[int, str] = {}
    for i, (last, beat) in enumerate(pairwise(order)):
        said_on[last.counter] = last.host
        if _is_boot(last, beat):
            said_on.clear()
        elif not _goes_on(last, beat):
            yield _describe(last, beat, said_on.get(beat.counter)), order[: i + 2]


def _goes_on(last: Beat, beat: Beat) -> bool:
    step = beat.counter - last.counter
    return step > 0 and (beat.host == last.host or step <= LOST_BEATS_MAX)


def _is_boot(last: Beat, beat: Beat) -> bool:
    return beat.counter <= min(last.counter, FRESH_BOOT_MAX)


def _describe(last: Beat, beat: Beat, before: str | None) -> str:
    if beat.counter > last.counter:
        return (
            f"heartbeat {beat.counter} on {beat.host} does not continue"
            f" {last.counter} on {last.host}"
        )
    if before is not None and before != beat.host:
        return f"heartbeat {beat.counter} of one boot on {before} and on {beat.host}"
    if before is not None:
        return f"heartbeat {beat.counter} of one boot twice on {beat.host}"
    return (
        f"heartbeat goes back from {last.counter} on {last.host}"
        f" to {beat.counter} on {beat.host} without a boot"
    )


def put_in_order(beats: Sequence[Beat]) -> list[Beat]:
    """Return the beats in that of all possible orders which has the fewest breaks.

    Grows all orders by one beat at a time, and of those that have come equally far on every
    console and end on the same one keeps the best. Only beats whose spans touch can change places,
    so there are few at a time.
    """
    queues: dict[str, list[Beat]] = {}
    for beat in beats:
        queues.setdefault(beat.host, []).append(beat)
    consoles = list(queues.values())
    grown: dict[tuple[tuple[int, ...], int], _Order] = {
        ((0,) * len(consoles), -1): _Order(0, None, None)
    }
    for _ in beats:
        longer: dict[tuple[tuple[int, ...], int], _Order] = {}
        for (read, _), order in grown.items():
            heads = [
                (i, console[at])
                for i, (console, at) in enumerate(zip(consoles, read, strict=True))
                if at < len(console)
            ]
            first_read_at_s = min(head.at_s for _, head in heads)
            for i, head in heads:
                if head.after_s >= first_read_at_s:
                    continue
                last = order.last
                is_fine = last is None or _goes_on(last, head) or _is_boot(last, head)
                key = ((*read[:i], read[i] + 1, *read[i + 1 :]), i)
                breaks = order.breaks + (not is_fine)
                if key not in longer or breaks < longer[key].breaks:
                    longer[key] = _Order(breaks, head, order)
        grown = longer
    best: _Order | None = min(grown.values(), key=lambda order: order.breaks)
    found: list[Beat] = []
    while best is not None and best.last is not None:
        found.append(best.last)
        best = best.before
    return found[::-1]


@dataclass(frozen=True, slots=True)
class _Order:
    """An order of some beats: how many breaks it has, its last beat, and what comes before."""

    breaks: int
    last: Beat | None
    before: _Order | None
