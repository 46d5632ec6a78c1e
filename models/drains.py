"""What a drain reads: who is on a host or on the way to it, and which drain empties it."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from innkeeper.states import LIVE_OPERATION_STATES, InstanceState
from models.operation import Operation

DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class GuestOnHost:
    """A guest that is on a host, or has a claim there.

    Args:
        id: its UUID.
        name: its name.
        state: what it is.
        host: where its record has it.
        holder: kind of the operation that holds it; None when it is free.
        holder_id: that operation.
    """

    id: UUID
    name: str
    state: InstanceState
    host: str | None
    holder: str | None
    holder_id: UUID | None


_GUESTS = text(
    """
    SELECT i.id, i.name, i.state, i.host, o.kind, o.id
      FROM instances i LEFT JOIN operations o ON o.id = i.operation_id
     WHERE i.state <> 'deleted'
       AND (i.host = :host
            OR EXISTS (SELECT 1 FROM claims c WHERE c.instance_id = i.id AND c.host = :host))
     ORDER BY i.name
    """
)


def list_guests(session: Session, host: str) -> list[GuestOnHost]:
    """Return the guests on a host and those on their way to it, by name."""
    return [
        GuestOnHost(row[0], row[1], InstanceState(row[2]), *row[3:])
        for row in session.execute(_GUESTS, {"host": host})
    ]


def find_live_drain(session: Session, host: str) -> UUID | None:
    """Find the drain of a host that has not ended."""
    return session.scalars(
        select(Operation.id).where(
            Operation.kind == DRAIN,
            Operation.src_host == host,
            Operation.state.in_(LIVE_OPERATION_STATES),
        )
    ).first()


def record_refused(
    session: Session, operation_id: UUID, position: int, guest_id: UUID, refused: dict[str, Any]
) -> None:
    """Write that a guest could not be asked to move, and why; the first reason stands.

    Args:
        session: the transaction in which the step is known to be the caller's.
        operation_id: the drain.
        position: its step that moves guests.
        guest_id: the guest.
        refused: ``{instance, error}``.
    """
    session.execute(
        text(
            "UPDATE steps SET detail = jsonb_set(detail, '{refused}', "
            "jsonb_build_object(CAST(:guest AS text), CAST(:refused AS jsonb)) "
            "|| COALESCE(detail -> 'refused', '{}')) "
            "WHERE operation_id = :o AND position = :p"
        ),
        {
            "o": operation_id,
            "p": position,
            "guest": str(guest_id),
            "refused": json.dumps(refused, default=str),
        },
    )
