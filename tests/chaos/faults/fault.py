"""What a fault is, and what it needs to strike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from lab.handle import Lab
from tests.chaos.faults.bent_redis import BentRedis

MEND_TIMEOUT_S = 60.0


class StageLike(Protocol):
    """A lab, and how its roles are started."""

    @property
    def lab(self) -> Lab:
        """The hosts and all processes."""
        ...

    @property
    def redis(self) -> BentRedis | None:
        """What stands between Redis and everybody else, if something does."""
        ...

    def start(self, role: str) -> object:
        """Start a role with the right environment; nothing happens if it runs."""
        ...


class Fault(Protocol):
    """One thing that goes wrong, and is put right again.

    Both moves may be repeated, and made in any order with those of other faults. What one process
    loses by a fault stays lost; `mend` brings back the surroundings, not the past.
    """

    @property
    def name(self) -> str:
        """Always the same for the same fault, so that a run can be repeated."""
        ...

    @property
    def lasts_s(self) -> float:
        """How long it should stand between `strike` and `mend` to be felt."""
        ...

    def strike(self, stage: StageLike) -> None:
        """Break it; returns when it is broken.

        Raises:
            MissedError: there was nothing to break; nothing has been changed.
        """
        ...

    def mend(self, stage: StageLike) -> None:
        """Bring back the normal state; returns when it is back.

        Raises:
            LabError: it does not come back.
            TimeoutError: it does not come back in time.
        """
        ...


class MissedError(Exception):
    """A fault found nothing to strike: no guest, no migration, no bent Redis."""


@contextmanager
def struck(fault: Fault, stage: StageLike) -> Iterator[None]:
    """Strike, and mend at the end, however that is reached."""
    try:
        fault.strike(stage)
        yield
    finally:
        fault.mend(stage)


def family_of(fault: Fault) -> str:
    """Return a fault's kind, without what it strikes."""
    return fault.name.partition(":")[0]
