"""An operation's rows as short lines, for a case that did not hold."""

from typing import Any
from uuid import UUID

import psycopg

_OPERATION = """
    SELECT kind, state, src_host, dst_host, is_committed, cancel_requested, error, created_at,
           finished_at, outcome_published_at
      FROM operations WHERE id = %s
"""
_STEPS = """
    SELECT position, name, host, state, attempt, failures, rings, error, log, undo,
           to_char(started_at, 'HH24:MI:SS.MS') AS started,
           to_char(finished_at, 'HH24:MI:SS.MS') AS finished,
           to_char(rung_at, 'HH24:MI:SS.MS') AS rung,
           to_char(lease_expires_at, 'HH24:MI:SS.MS') AS lease
      FROM steps WHERE operation_id = %s ORDER BY position
"""


def tell_operation(connection: psycopg.Connection[dict[str, Any]], operation_id: UUID) -> list[str]:
    """Return an operation's story, one line for itself and one for each step and note."""
    row = connection.execute(_OPERATION, (operation_id,)).fetchone()
    if row is None:
        return [f"operation {operation_id} has no row"]
    lines = [
        f"{row['kind']} {operation_id}: {row['state']} {row['src_host'] or ''}→{row['dst_host']}"
        f"{' committed' if row['is_committed'] else ''}"
        f"{' cancel requested' if row['cancel_requested'] else ''}, {row['created_at']:%H:%M:%S.%f}"
        f" … {row['finished_at']}, published {row['outcome_published_at']}"
    ]
    if row["error"]:
        lines.append(f"  error {row['error']}")
    for step in connection.execute(_STEPS, (operation_id,)):
        lines.append(
            f"  {step['position']} {step['name']} on {step['host'] or 'control'}: {step['state']},"
            f" attempt {step['attempt']}, failures {step['failures']}, rings {step['rings']},"
            f" rung {step['rung']}, {step['started']} … {step['finished']}"
            f"{', lease ' + step['lease'] if step['lease'] else ''}, undo {step['undo']}"
        )
        if step["error"]:
            lines.append(f"      {step['error'].get('code')}: {step['error'].get('message')}")
        lines += [f"      {note.get('at')}: {note.get('text')}" for note in step["log"]]
    return lines
