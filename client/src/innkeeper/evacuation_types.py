"""Evacuation on the wire: what is asked for, and what would come of it."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from innkeeper.messages import HostName, Request, View


class EvacuationSpec(Request):
    """A dead host whose guests are to run elsewhere.

    Args:
        host: the dead one.
        confirmed_dead: an operator's own words on how it is known that the host is off; takes the
            place of a fencing hook, and counts only for a host that has fallen silent.
        concurrency: how many guests are moved at once.
    """

    host: HostName
    confirmed_dead: Annotated[str, Field(min_length=5, max_length=500)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4


class EvacuationGuest(View):
    """What an evacuation would do with one guest.

    ``action`` is ``start`` (it runs on ``dst``), ``define`` (it is off, and would be off on
    ``dst``) or ``leave``, with ``code`` and ``message`` telling why.
    """

    instance_id: UUID
    name: str
    state: str
    action: str
    dst: str | None = None
    code: str | None = None
    message: str | None = None


class EvacuationPlan(View):
    """What an evacuation would do, as of now; nothing is done or kept for it.

    ``proof`` is ``fenced``, ``hook``, ``override_possible`` or ``none``: what would prove that
    the host is dead.
    """

    host: str
    heard_s: float | None = None
    proof: str
    message: str
    guests: list[EvacuationGuest] = Field(default_factory=list)
