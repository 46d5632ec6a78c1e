"""Steps that need not wait for a host that is down."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.claims import HOST_IS_UP_S


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A step that was given up because its host is down."""

    operation_id: UUID
    position: int
    kind: str


_PASS_OVER = text(
    """
    UPDATE steps s
       SET state = CASE WHEN s.attempt = 0 THEN 'skipped' ELSE 'failed' END,
           owner = NULL, lease_expires_at = NULL,
           finished_at = CASE WHEN s.attempt = 0 THEN NULL ELSE clock_timestamp() END,
           error = CAST(:error AS jsonb) || jsonb_build_object(
               'host', s.host, 'step', s.name,
               'message', s.host || ' is down: its worker''s heartbeat is old.')
      FROM operations o, hosts h
     WHERE o.id = s.operation_id AND h.name = s.host
       AND o.state IN ('queued', 'running') AND NOT o.cancel_requested
       AND o.kind || '.' || s.name = ANY(:steps)
       AND (s.state = 'queued'
            OR (s.state = 'running' AND s.lease_expires_at <= clock_timestamp()))
       AND (h.heartbeat_at IS NULL
            OR h.heartbeat_at <= clock_timestamp() - make_interval(secs => :up_s))
       AND NOT EXISTS (SELECT 1 FROM steps p
                        WHERE p.operation_id = s.operation_id AND p.position < s.position
                          AND p.state IN ('queued', 'running', 'undo', 'undoing'))
    RETURNING s.operation_id, s.position, o.kind
    """
)


def pass_over_absent(
    session: Session, steps: Sequence[str], error: Mapping[str, Any]
) -> list[PassedOver]:
    """Give up the steps whose turn it is and whose host is down.

    Args:
        session: an open transaction.
        steps: which steps may be passed over, as ``<kind>.<step>``.
        error: the wire form of why, without the host.
    """
    if not steps:
        return []
    rows = session.execute(
        _PASS_OVER,
        {"steps": list(steps), "error": json.dumps(dict(error)), "up_s": HOST_IS_UP_S},
    )
    return [PassedOver(*row) for row in rows]
