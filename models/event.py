"""What happened, in order, and how far it was told.

Rows are written by triggers wherever a state moves, and by `record_event` for what no state shows;
their place in the feed is given afterwards: see models/event_feed.py.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Event(Base):
    """Something that happened, for people and for other services; never read by the engine.

    ``id`` grows in the order in which rows are written, ``position`` in the order in which they
    can be seen; the latter has no gaps and is what consumers know an event by.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("uq_events_position", "position", unique=True),
        Index("ix_events_unplaced", "id", postgresql_where=text("position IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    position: Mapped[int | None] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)
    kind: Mapped[str]
    instance_id: Mapped[UUID | None] = mapped_column(index=True)
    operation_id: Mapped[UUID | None] = mapped_column(index=True)
    host: Mapped[str | None]
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))


class EventRelay(Base):
    """The one row of the relay: the last position given, the last one published, and by whom."""

    __tablename__ = "event_relay"
    __table_args__ = (
        CheckConstraint("id = 1", name="only_one"),
        CheckConstraint("published <= position", name="order"),
    )

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    published: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
