"""Events on the wire: in the stream in Redis, and in answers about the past."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pydantic import Field

from innkeeper.messages import View

EVENT_SCHEMA: Final = 1
DEFAULT_STREAM: Final = "innkeeper:events"
EVENT_FIELD: Final = "event"
"""The field of a stream's entry that holds the event as JSON; the entry's id is ``<id>-0``."""


class EventView(View):
    """Something that happened.

    ``id`` counts all events of a fleet without a gap. ``kind`` is ``<subject>.<what>``, for example
    ``instance.active``; subjects are instance, operation, step, migration, host, and others that
    are only ever added. ``schema_version`` grows when a field changes its meaning.
    """

    schema_version: int = EVENT_SCHEMA
    id: int
    at: datetime
    kind: str
    instance: UUID | None = None
    instance_name: str | None = None
    operation: UUID | None = None
    host: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class EventPage(View):
    """A part of the events that are kept, in order.

    ``newest`` is the id of the last event there is, ``oldest`` that of the first one still kept.
    """

    events: list[EventView]
    newest: int
    oldest: int
