"""Power states: one set-based difference between a host's snapshot and its records."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from innkeeper.states import InstanceState, PowerState


@dataclass(frozen=True, slots=True)
class ObservedPower:
    """What a host's hypervisor says of one domain."""

    instance_id: UUID
    power_state: PowerState
    domain_epoch: int | None


@dataclass(frozen=True, slots=True)
class PowerChange:
    """A guest whose observed power state asks for a decision."""

    instance_id: UUID
    name: str
    state: InstanceState
    power_state: PowerState
    previous: PowerState
    policy: str
    changed: bool
    is_owed: bool


_SYNC = text(
    """
    WITH observed AS (
        SELECT * FROM jsonb_to_recordset(CAST(:observed AS jsonb))
               AS o (id uuid, power_state text, domain_epoch bigint)
    ), before AS (
        SELECT i.id, i.name, i.state, i.power_state AS previous,
               COALESCE(i.spec->>'power_policy', 'stop') AS policy,
               COALESCE(o.power_state, 'shutdown') AS power_state
          FROM instances i LEFT JOIN observed o ON o.id = i.id
         WHERE i.host = :host AND i.operation_id IS NULL AND i.state <> 'deleted'
           AND i.updated_at < :observed_at
           AND (o.id IS NULL OR o.domain_epoch IS NULL OR o.domain_epoch = i.domain_epoch)
           AND (o.id IS NOT NULL OR :is_complete)
           FOR UPDATE OF i SKIP LOCKED
    ), written AS (
        UPDATE instances i
           SET power_state = b.power_state, power_observed_at = clock_timestamp(),
               updated_at = clock_timestamp()
          FROM before b WHERE i.id = b.id AND i.power_state <> b.power_state
        RETURNING i.id
    )
    SELECT b.id, b.name, b.state, b.power_state, b.previous, b.policy, w.id IS NOT NULL,
           b.state = 'unknown' AND EXISTS (
               SELECT 1 FROM operations o
                WHERE o.instance_id = b.id AND o.owes_since IS NOT NULL) AS is_owed
      FROM before b LEFT JOIN written w ON w.id = b.id
     WHERE w.id IS NOT NULL
        OR (b.state = 'active' AND b.power_state <> 'running')
        OR (b.state = 'stopped' AND b.power_state IN ('running', 'paused', 'suspended'))
        OR (b.state = 'paused' AND b.power_state IN ('shutdown', 'crashed', 'running'))
        OR (b.state = 'unknown')
    """
)


def sync_power(
    session: Session,
    *,
    host: str,
    observed: Sequence[ObservedPower],
    observed_at: datetime,
    is_complete: bool,
) -> list[PowerChange]:
    """Write what a host observed and return what departs from the records.

    Args:
        session: an open transaction.
        host: the observing host; only guests that the record places there are touched.
        observed: domains of the host; those with another epoch than the record's are ignored.
        observed_at: the database's clock from before the look; guests whose rows changed since are
            left for the next look, because the look may be older than the change.
        is_complete: True for a full snapshot, where a missing domain means it is off.

    Returns:
        Guests whose power state changed, or whose state and power state do not agree. One that is
        unknown because an operation still owes the look that would tell is marked ``is_owed``.
    """
    payload: list[dict[str, Any]] = [
        {"id": str(o.instance_id), "power_state": o.power_state, "domain_epoch": o.domain_epoch}
        for o in observed
    ]
    rows = session.execute(
        _SYNC,
        {
            "observed": json.dumps(payload),
            "host": host,
            "is_complete": is_complete,
            "observed_at": observed_at,
        },
    )
    return [
        PowerChange(
            row[0], row[1], InstanceState(row[2]), PowerState(row[3]), PowerState(row[4]), *row[5:]
        )
        for row in rows
    ]


def settle_state(
    session: Session, changes: Sequence[tuple[UUID, InstanceState, InstanceState]]
) -> list[UUID]:
    """Move guests' states where nobody holds them and they are as they were seen.

    Args:
        session: an open transaction.
        changes: ``(instance, expected state, new state)``.

    Returns:
        The guests that moved.
    """
    if not changes:
        return []
    rows = session.execute(
        text(
            """
            UPDATE instances i SET state = c.new_state, updated_at = clock_timestamp()
              FROM jsonb_to_recordset(CAST(:changes AS jsonb))
                   AS c (id uuid, expected text, new_state text)
             WHERE i.id = c.id AND i.state = c.expected AND i.operation_id IS NULL
            RETURNING i.id
            """
        ),
        {
            "changes": json.dumps(
                [{"id": str(i), "expected": old, "new_state": new} for i, old, new in changes]
            )
        },
    )
    return [row.id for row in rows]
