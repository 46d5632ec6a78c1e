"""The feed of events: each gets its place once it can be seen, and is published from there.

Rows get their ids when they are written and are seen when their transaction commits, so an id may
appear after a larger one. The relay therefore counts anew what it sees: positions have no gaps,
and whoever knows position n has missed nothing when n + 1 comes next.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, delete, func, select, text, update
from sqlalchemy.orm import Session

from innkeeper.event_types import EventPage, EventView
from models.event import Event, EventRelay
from models.instance import Instance


@dataclass(frozen=True, slots=True)
class RelayState:
    """What a relay finds when it looks.

    Args:
        position: the last position that was given.
        has_new: whether events have no place yet.
        is_busy: whether operations are under way, so that more is about to come.
    """

    position: int
    has_new: bool
    is_busy: bool


_HOLD = text(
    """
    WITH mine AS (
        UPDATE event_relay
           SET owner = :owner,
               published = least(greatest(published, :published), position),
               lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
         WHERE owner IS NULL OR lease_expires_at <= clock_timestamp()
            -- Of one node, one process lives: another of its name is dead.
            OR split_part(owner, '#', 1) = split_part(:owner, '#', 1)
        RETURNING position
    )
    SELECT position, EXISTS (SELECT 1 FROM events WHERE events.position IS NULL),
           EXISTS (SELECT 1 FROM operations WHERE state IN ('queued', 'running', 'undoing'))
      FROM mine
    """
)


def hold_relay(
    session: Session, *, owner: str, lease_s: float, published: int = 0
) -> RelayState | None:
    """Take or keep the relay, and look what there is to do: one statement.

    Args:
        session: an open transaction; until its end nobody else gives positions.
        owner: ``node#process``; a node's next process takes the relay from its last one.
        lease_s: for how long the relay is this process's without another call.
        published: the last position that the caller has seen Redis take; the record of it never
            goes back.

    Returns:
        None while the relay is another's.
    """
    row = session.execute(
        _HOLD, {"owner": owner, "lease_s": lease_s, "published": published}
    ).one_or_none()
    return None if row is None else RelayState(*row)


def release_relay(session: Session, *, owner: str) -> None:
    """Let another process have the relay at once."""
    session.execute(
        update(EventRelay)
        .where(EventRelay.owner == owner)
        .values(owner=None, lease_expires_at=None)
    )


_PLACE = text(
    """
    WITH fresh AS (
        SELECT id FROM events WHERE position IS NULL ORDER BY id LIMIT :limit
    ), counted AS (
        UPDATE event_relay SET position = position + (SELECT count(*) FROM fresh)
        RETURNING position
    ), numbered AS (
        SELECT id, row_number() OVER (ORDER BY id) - count(*) OVER () AS back FROM fresh
    )
    UPDATE events SET position = counted.position + numbered.back
      FROM numbered, counted WHERE events.id = numbered.id
    """
)


def place_events(session: Session, *, limit: int = 5000) -> int:
    """Give their positions to events that can be seen and have none.

    Only in a transaction that has called `hold_relay`: the row that it has locked is what keeps
    two relays from counting the same events.

    Returns:
        How many there were.
    """
    return int(session.execute(_PLACE, {"limit": limit}).rowcount)  # type: ignore[attr-defined]


def list_events_after(session: Session, after: int, *, limit: int) -> list[EventView]:
    """Return events by position, from the one after ``after``."""
    rows = session.execute(
        _EVENTS.where(Event.position > after).order_by(Event.position).limit(limit)
    )
    return [_view(row) for row in rows]


def read_page(
    session: Session, *, after: int | None, limit: int, instance: str | None = None
) -> EventPage:
    """Return a part of the feed.

    Args:
        session: an open transaction.
        after: the position behind which to begin; None for the newest events.
        limit: how many at most.
        instance: only of the guest with this UUID, or of all that have or had this name.
    """
    query = _EVENTS.where(Event.position.is_not(None))
    if instance is not None:
        query = query.where(_is_of(instance))
    if after is None:
        rows = list(session.execute(query.order_by(Event.position.desc()).limit(limit)))[::-1]
    else:
        query = query.where(Event.position > after)
        rows = list(session.execute(query.order_by(Event.position).limit(limit)))
    newest = session.scalar(select(EventRelay.position)) or 0
    oldest = session.scalar(select(func.min(Event.position)))
    return EventPage(
        events=[_view(row) for row in rows],
        newest=newest,
        oldest=newest + 1 if oldest is None else oldest,
    )


def forget_events(session: Session, *, older_than_s: float, limit: int = 10_000) -> int:
    """Remove published events of more than an age, the oldest first, without leaving a gap.

    Returns:
        How many were removed.
    """
    last = session.scalar(
        select(func.max(Event.position)).where(
            Event.at < func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, older_than_s)
        )
    )
    if last is None:
        return 0
    old = (
        select(Event.id)
        .where(
            Event.position <= last,
            Event.position <= select(EventRelay.published).scalar_subquery(),
        )
        .order_by(Event.position)
        .limit(limit)
    )
    removed = session.execute(delete(Event).where(Event.id.in_(old)))
    return int(removed.rowcount)  # type: ignore[attr-defined]


def _is_of(instance: str) -> ColumnElement[bool]:
    try:
        return Event.instance_id == UUID(instance)
    except ValueError:
        return Event.instance_id.in_(select(Instance.id).where(Instance.name == instance))


_EVENTS = select(
    Event.position,
    Event.at,
    Event.kind,
    Event.instance_id,
    Instance.name,
    Event.operation_id,
    Event.host,
    Event.data,
).outerjoin(Instance, Instance.id == Event.instance_id)


def _view(row: Row[Any]) -> EventView:
    position, at, kind, instance_id, name, operation_id, host, data = tuple(row)
    return EventView(
        id=position,
        at=at,
        kind=kind,
        instance=instance_id,
        instance_name=name,
        operation=operation_id,
        host=host,
        data=data,
    )
