"""Keeps a guest in hand from one step to the next, when both are this worker's.

The next step's claim is written in the transaction that records the step before it, under the
guest's lock, and the lock goes from the one to the other: nobody has had the guest in between, so
nothing needs to be asked again. What is kept dies with the process, like every claim and lock.
"""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from tasks.leases import HeldLease, LeaseKeeper

if TYPE_CHECKING:
    from tasks.engine import Claim

# A process that was frozen in between asks again.
FRESH_S = 1.0


@dataclass(slots=True)
class InHand:
    """A claimed step with what is held for it.

    Args:
        claim: the claim.
        lease: its lease, which is kept.
        stack: gives the lease up when it is closed.
        lock: gives the guest's lock up when it is closed; empty while it is not held.
        has_guest: whether the claim was written under the lock, so that nothing is left to ask.
        is_on_its_way: whether its message has been handed to this process's pool.
        since: when the claim was committed, on the monotonic clock.
    """

    claim: "Claim"
    lease: HeldLease
    stack: ExitStack
    lock: ExitStack
    has_guest: bool
    is_on_its_way: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def needs_no_check(self) -> bool:
        """Whether its claim is as fresh as one that was just written under the guest's lock."""
        return self.has_guest and time.monotonic() - self.since < FRESH_S

    def let_go(self) -> None:
        """Give lock and lease up; the lease runs out, and the step is begun by who comes then."""
        self.lock.close()
        self.stack.close()


def hold(leases: LeaseKeeper, claim: "Claim", lock: ExitStack | None = None) -> InHand:
    """Keep a claimed step's lease from now on.

    Args:
        leases: keeps it.
        claim: the step.
        lock: the guest's, where the claim was written under it.
    """
    stack = ExitStack()
    lease = stack.enter_context(leases.hold(claim.step.key))
    return InHand(claim, lease, stack, lock or ExitStack(), has_guest=lock is not None)


class Hands:
    """What one process has in hand."""

    def __init__(self) -> None:
        self._kept: dict[tuple[UUID, int], InHand] = {}
        self._guard = threading.Lock()

    def keep(self, kept: InHand) -> None:
        """Keep a claimed step until its message comes."""
        key = kept.claim.step.key
        with self._guard:
            self._kept[key.operation_id, key.position] = kept

    def note_message(self, operation_id: UUID, position: int) -> None:
        """Note that the message of a step has been handed over."""
        with self._guard:
            kept = self._kept.get((operation_id, position))
            if kept is not None:
                kept.is_on_its_way = True

    def take(self, operation_id: UUID, position: int) -> InHand | None:
        """Return what is kept of a step, to the one who goes on with it."""
        with self._guard:
            return self._kept.pop((operation_id, position), None)

    def let_go_of_silent(self, operation_id: UUID, position: int) -> None:
        """Give a step up when no message has been handed over for it."""
        with self._guard:
            kept = self._kept.get((operation_id, position))
            if kept is None or kept.is_on_its_way:
                return
            del self._kept[operation_id, position]
        kept.let_go()
