"""Draining a host, on the wire: what is asked for, and what is answered."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, field_validator

from innkeeper.messages import Request, View
from innkeeper.states import InstanceState
from innkeeper.types import MigrationPolicy


class DrainPolicy(Request):
    """How a host is emptied of the guests that run on it.

    Args:
        concurrency: how many guests are under way at once, 1…100; those above the limits of hosts
            and links are prepared and stand in line. None for one more than may leave the host.
        deadline_s: the whole drain's time.
        on_cancel: what becomes of the migrations under way when the drain is cancelled or late:
            ``cancel`` takes them back where that is possible, ``finish`` lets them end.
        migration: how each guest is moved; ``dst`` is chosen per guest.
    """

    concurrency: Annotated[int, Field(ge=1, le=100)] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=604_800)] = 14_400
    on_cancel: Literal["cancel", "finish"] = "cancel"
    migration: MigrationPolicy = MigrationPolicy()

    @field_validator("migration")
    @classmethod
    def _refuse_destination(cls, migration: MigrationPolicy) -> MigrationPolicy:
        if migration.dst is not None:
            raise ValueError("a drain chooses a destination for each guest; leave dst out")
        return migration


class PlannedMove(View):
    """What a drain would do with one guest as things are.

    ``action`` is ``move`` (to ``dst``, as far as can be told), ``wait`` (an operation holds the
    guest), ``refuse`` (no host takes it: ``refusals``) or ``stay`` (this release moves running
    guests only); ``why`` says so for people.
    """

    instance_id: UUID
    instance: str
    state: InstanceState
    action: str
    dst: str | None = None
    why: str | None = None
    refusals: list[dict[str, Any]] = Field(default_factory=list)


class DrainPlan(View):
    """What a drain of a host would do as things are; nothing is kept free for it."""

    host: str
    concurrency: int
    guests: list[PlannedMove] = Field(default_factory=list)
