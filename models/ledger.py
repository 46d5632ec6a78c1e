"""The ledger's moves: claim a step, keep it, complete it, give it up.

Every move is one statement that matches on what it expects; the number of rows it touched says
whether the caller still owns the step. Times are the database's clock, never a host's.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.orm import Session

from innkeeper.errors import LeaseLost
from innkeeper.states import StepState
from models.advisory import key_of

LEASE_S = 15.0

# A lone statement needs no session; inside a session's transaction it goes through that.
Speaker = Session | Connection


@dataclass(frozen=True, slots=True)
class StepKey:
    """Names one attempt at a step; the attempt number is its fencing token."""

    operation_id: UUID
    position: int
    attempt: int
    owner: str


@dataclass(frozen=True, slots=True)
class ClaimedStep:
    """What a successful claim returns."""

    key: StepKey
    name: str
    host: str | None
    is_undo: bool
    failures: int
    detail: dict[str, Any]
    undo: dict[str, Any]
    was_begun_before: bool
    # What the done steps recorded, by name; of a step that was planned twice, the later.
    details_of_done: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """The answer to a heartbeat: what the owner must know of a step that it holds."""

    operation_id: UUID
    position: int
    attempt: int
    cancel_requested: bool
    is_past_deadline: bool


_CLAIM = text(
    """
    WITH before AS (
        SELECT operation_id, position, state, attempt FROM steps
         WHERE operation_id = :operation_id AND position = :position FOR UPDATE
    ), claimed AS (
        UPDATE steps s
           SET state = CASE WHEN s.state IN ('undo', 'undoing') THEN 'undoing' ELSE 'running' END,
               attempt = s.attempt + 1,
               failures = s.failures
                   + CASE WHEN s.state IN ('running', 'undoing') THEN 1 ELSE 0 END,
               owner = :owner,
               lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s),
               started_at = COALESCE(s.started_at, clock_timestamp()),
               waiting_for = NULL
          FROM operations o, before
         WHERE o.id = s.operation_id
           AND s.operation_id = before.operation_id AND s.position = before.position
           AND s.not_before <= clock_timestamp()
           AND (
                ((o.state IN ('queued', 'running') OR o.owes_since IS NOT NULL)
                 AND (s.state = 'queued'
                      OR (s.state = 'running' AND s.lease_expires_at <= clock_timestamp()))
                 AND NOT EXISTS (
                    SELECT 1 FROM steps p
                     WHERE p.operation_id = s.operation_id AND p.position < s.position
                       AND p.state IN ('queued', 'running', 'undo', 'undoing')))
             OR ((o.state = 'undoing' OR o.owes_since IS NOT NULL)
                 AND (s.state = 'undo'
                      OR (s.state = 'undoing' AND s.lease_expires_at <= clock_timestamp()))
                 AND NOT EXISTS (
                    SELECT 1 FROM steps p
                     WHERE p.operation_id = s.operation_id AND p.position > s.position
                       AND p.state IN ('running', 'undo', 'undoing')))
           )
        RETURNING s.attempt, s.name, s.host, s.state = 'undoing' AS is_undo, s.failures,
                  s.detail, s.undo,
                  before.attempt > 0 AND before.state <> 'undo' AS was_begun_before,
                  (SELECT jsonb_object_agg(d.name, d.detail ORDER BY d.position) FROM steps d
                    WHERE d.operation_id = s.operation_id AND d.state = 'done') AS details_of_done
    ), begun AS (
        UPDATE operations SET state = 'running', started_at = clock_timestamp(),
               updated_at = clock_timestamp()
         WHERE id = :operation_id AND state = 'queued'
           AND EXISTS (SELECT 1 FROM claimed WHERE NOT is_undo)
    )
    SELECT * FROM claimed
    """
)


def claim_step(
    session: Session, operation_id: UUID, position: int, *, owner: str, lease_s: float = LEASE_S
) -> ClaimedStep | None:
    """Take a step that is free, or whose owner's lease has run out.

    Args:
        session: an open transaction.
        operation_id: the operation.
        position: the step's place in it.
        owner: ``node#uuid`` of the claiming process.
        lease_s: how long the claim holds without a heartbeat.

    Returns:
        The claim; None when the step is another's, done, not yet due, or its turn has not come.
    """
    # Claiming is what every step does; the session's own bookkeeping would take half as long again.
    found = session.connection().execute(
        _CLAIM,
        {"operation_id": operation_id, "position": position, "owner": owner, "lease_s": lease_s},
    )
    row = found.one_or_none()
    if row is None:
        return None
    return ClaimedStep(
        key=StepKey(operation_id, position, row.attempt, owner),
        name=row.name,
        host=row.host,
        is_undo=row.is_undo,
        failures=row.failures,
        detail=row.detail,
        undo=row.undo,
        was_begun_before=row.was_begun_before,
        details_of_done=row.details_of_done or {},
    )


def find_step_state(session: Session, operation_id: UUID, position: int) -> StepState | None:
    """Return where a step is, or None if the operation has no such step."""
    state = session.execute(
        text("SELECT state FROM steps WHERE operation_id = :o AND position = :p"),
        {"o": operation_id, "p": position},
    ).scalar()
    return None if state is None else StepState(state)


_HEARTBEAT = text(
    """
    UPDATE steps s
       SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
      FROM operations o,
           unnest(CAST(:operation_ids AS uuid[]), CAST(:positions AS int[]),
                  CAST(:attempts AS int[])) AS held (operation_id, position, attempt)
     WHERE s.operation_id = held.operation_id AND s.position = held.position
       AND s.attempt = held.attempt AND s.owner = :owner
       AND s.state IN ('running', 'undoing') AND o.id = s.operation_id
    RETURNING s.operation_id, s.position, s.attempt, o.cancel_requested,
              COALESCE(o.deadline_at < clock_timestamp(), false) AS is_past_deadline
    """
)


def renew_leases(
    session: Session, keys: Sequence[StepKey], *, owner: str, lease_s: float = LEASE_S
) -> list[Held]:
    """Renew the leases of all of a process's steps in one statement.

    Returns:
        The steps that are still the owner's; those missing have been lost.
    """
    rows = session.execute(
        _HEARTBEAT,
        {
            "operation_ids": [key.operation_id for key in keys],
            "positions": [key.position for key in keys],
            "attempts": [key.attempt for key in keys],
            "owner": owner,
            "lease_s": lease_s,
        },
    )
    return [Held(*row) for row in rows]


_DONE = (
    "state = 'done', owner = NULL, lease_expires_at = NULL, error = NULL, "
    "finished_at = clock_timestamp(), detail = detail || CAST(:detail AS jsonb)"
)

_MINE = """
     WHERE operation_id = :operation_id AND position = :position AND attempt = :attempt
       AND owner = :owner AND state IN ('running', 'undoing')
"""


@cache
def _update_mine(assignments: str) -> TextClause:
    return text(f"UPDATE steps SET {assignments} {_MINE}")  # noqa: S608 (constants of this module)


def _move(session: Speaker, key: StepKey, assignments: str, **values: Any) -> None:
    """Apply assignments to a step that the key still owns, or raise LeaseLost."""
    _execute_move(session, key, _update_mine(assignments), **values)


def _execute_move(session: Speaker, key: StepKey, statement: TextClause, **values: Any) -> None:
    result = session.execute(statement, {**asdict(key), **values})
    if result.rowcount != 1:  # type: ignore[attr-defined]
        raise _lost(key)


def _lost(key: StepKey) -> LeaseLost:
    return LeaseLost(
        f"Step {key.position} of operation {key.operation_id} belongs to another worker now.",
        {"operation_id": str(key.operation_id), "attempt": key.attempt},
    )


def assert_owned(session: Session, key: StepKey) -> None:
    """Check that the step is still the owner's and hold its row until the transaction ends.

    Raises:
        LeaseLost: when it is not.
    """
    _move(session, key, "owner = owner")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the guest of a held step is by now, and whether an operation holds it."""

    epoch: int
    host: str | None
    is_held: bool


_PLACEMENT = text(
    """
    SELECT i.epoch, i.host, i.operation_id IS NOT NULL AS is_held
      FROM steps s JOIN operations o ON o.id = s.operation_id
      JOIN instances i ON i.id = o.instance_id
     WHERE s.operation_id = :operation_id AND s.position = :position
       AND s.attempt = :attempt AND s.owner = :owner
       AND s.state IN ('running', 'undoing')
    """
)


def find_placement_if_owned(session: Speaker, key: StepKey) -> Placement | None:
    """Return the guest's epoch and place as they are now; None when the step is another's."""
    row = session.execute(_PLACEMENT, asdict(key)).one_or_none()
    return None if row is None else Placement(*row)


_INTEND_UNDER_LOCKS = text(
    f"""
    WITH locked AS MATERIALIZED (
        SELECT count(CAST(pg_advisory_xact_lock({key_of("name")}) AS text))
          FROM unnest(CAST(:locks AS text[])) AS name
    )
    UPDATE steps SET undo = undo || CAST(:undo AS jsonb) FROM locked {_MINE}
    """  # noqa: S608 (constants of this module)
)


def record_intent(
    session: Speaker, key: StepKey, undo: dict[str, Any], *, locks: Sequence[str] = ()
) -> None:
    """Write what would have to be removed, before it is made.

    Args:
        session: a transaction, or a connection for which this one statement is one.
        key: the step.
        undo: names what is about to be made; added to what was named before.
        locks: names of advisory locks, taken in this order before it is written and held until the
            transaction ends.

    Raises:
        LeaseLost: the step is another worker's.
    """
    if locks:
        _execute_move(session, key, _INTEND_UNDER_LOCKS, undo=_json(undo), locks=list(locks))
        return
    _move(session, key, "undo = undo || CAST(:undo AS jsonb)", undo=_json(undo))


def append_log(session: Speaker, key: StepKey, message: str) -> None:
    """Add a line to the step's story, for ``explain``."""
    _move(
        session,
        key,
        "log = log || jsonb_build_array(jsonb_build_object("
        "'at', clock_timestamp(), 'attempt', attempt, 'text', CAST(:message AS text)))",
        message=message,
    )


def complete_step(session: Session, key: StepKey, detail: dict[str, Any]) -> None:
    """Record a step as done."""
    _move(session, key, _DONE, detail=_json(detail))


_COMPLETE_AND_RING = text(
    f"""
    WITH mine AS (
        UPDATE steps SET {_DONE} {_MINE}
        RETURNING operation_id
    ), rung AS (
        UPDATE steps s SET rung_at = clock_timestamp(), rings = rings + 1
          FROM mine
         WHERE s.operation_id = mine.operation_id AND s.position = :position + 1
           AND s.state = 'queued'
        RETURNING s.position, s.name, s.host
    )
    SELECT rung.position, rung.name, rung.host,
           NOT EXISTS (SELECT 1 FROM steps o
                        WHERE o.operation_id = mine.operation_id AND o.position <> :position
                          AND o.state IN ('queued', 'running', 'undo', 'undoing')) AS is_last
      FROM mine LEFT JOIN rung ON true
    """  # noqa: S608 (constants of this module)
)


@dataclass(frozen=True, slots=True)
class Rung:
    """The step that comes next, and whose queue it is for."""

    position: int
    name: str
    host: str | None


def complete_and_ring(
    session: Session, key: StepKey, detail: dict[str, Any]
) -> tuple[Rung | None, bool]:
    """Record a step as done, and the one after it as rung if that waits for it.

    Returns:
        The one after it, None when none waits; and whether nothing of the operation is left.

    Raises:
        LeaseLost: the step is another worker's.
    """
    found = session.connection().execute(
        _COMPLETE_AND_RING, {**asdict(key), "detail": _json(detail)}
    )
    row = found.one_or_none()
    if row is None:
        raise _lost(key)
    following = None if row.position is None else Rung(row.position, row.name, row.host)
    return following, row.is_last


def complete_undo(session: Session, key: StepKey) -> None:
    """Record that what a step made is gone."""
    _move(session, key, "state = 'undone', owner = NULL, lease_expires_at = NULL")


def fail_step(session: Session, key: StepKey, error: dict[str, Any]) -> None:
    """Record a step as failed for good."""
    _move(
        session,
        key,
        "state = 'failed', owner = NULL, lease_expires_at = NULL, "
        "finished_at = clock_timestamp(), error = CAST(:error AS jsonb)",
        error=_json(error),
    )


def requeue_step(
    session: Session,
    key: StepKey,
    *,
    after_s: float,
    error: dict[str, Any] | None = None,
    waiting_for: str | None = None,
) -> None:
    """Give a step back so that it is begun again later.

    Args:
        session: an open transaction.
        key: the attempt that ends.
        after_s: the shortest time until the next attempt.
        error: why, when it failed; counts towards the step's limit of failures.
        waiting_for: why, when it only waits its turn; counts towards nothing.
    """
    _move(
        session,
        key,
        "state = CASE WHEN state = 'undoing' THEN 'undo' ELSE 'queued' END, owner = NULL, "
        "lease_expires_at = NULL, rung_at = NULL, "
        "not_before = clock_timestamp() + make_interval(secs => :after_s), "
        "failures = failures + CASE WHEN CAST(:error AS jsonb) IS NULL THEN 0 ELSE 1 END, "
        "error = COALESCE(CAST(:error AS jsonb), error), waiting_for = :waiting_for",
        after_s=after_s,
        error=None if error is None else _json(error),
        waiting_for=waiting_for,
    )


def decline_step(
    session: Session, key: StepKey, *, after_s: float, waiting_for: str | None = None
) -> None:
    """Take a claim back in its own transaction, as if the step had not been begun.

    Args:
        session: the transaction of the claim.
        key: the claim.
        after_s: the shortest time until it may be claimed again, if nobody calls it before.
        waiting_for: what it waits in line for; it gets a ticket, or keeps the one it has.
    """
    _move(
        session,
        key,
        "state = CASE WHEN state = 'undoing' THEN 'undo' ELSE 'queued' END, owner = NULL, "
        "lease_expires_at = NULL, rung_at = NULL, rings = 0, attempt = attempt - 1, "
        "started_at = CASE WHEN attempt > 1 THEN started_at END, "
        "not_before = clock_timestamp() + make_interval(secs => :after_s), "
        "waiting_for = CAST(:waiting_for AS text), "
        "waiting_since = CASE WHEN CAST(:waiting_for AS text) IS NULL THEN waiting_since "
        "ELSE COALESCE(waiting_since, (SELECT min(p.waiting_since) FROM steps p WHERE p.name = "
        "steps.name AND p.operation_id = steps.operation_id), clock_timestamp()) END",
        after_s=after_s,
        waiting_for=waiting_for,
    )


def hasten_step(session: Session, operation_id: UUID, position: int) -> bool:
    """Have a step that was given back begun again now, and mark it as rung.

    Returns:
        False when nobody had given it back.
    """
    result = session.execute(
        text(
            "UPDATE steps SET not_before = clock_timestamp(), rung_at = clock_timestamp(), "
            "rings = 1 WHERE operation_id = :o AND position = :p AND state IN ('queued', 'undo')"
        ),
        {"o": operation_id, "p": position},
    )
    return bool(result.rowcount)  # type: ignore[attr-defined]


def ring_step(session: Session, operation_id: UUID, position: int) -> bool:
    """Mark a step that waits for its turn as rung; False when it does not wait for it."""
    rung = session.execute(
        text(
            "UPDATE steps SET rung_at = clock_timestamp(), rings = rings + 1 "
            "WHERE operation_id = :o AND state = 'queued' AND position = :p"
        ),
        {"o": operation_id, "p": position},
    )
    return bool(rung.rowcount)  # type: ignore[attr-defined]


def reopen_step(session: Session, operation_id: UUID, *, name: str, after_s: float) -> None:
    """Have a done step's look at the world made anew before the operation goes on.

    Args:
        session: an open transaction.
        operation_id: the operation.
        name: the step; of one that was planned twice, the later.
        after_s: the shortest time until it is begun.
    """
    session.execute(
        text(
            """
            UPDATE steps
               SET state = 'queued', rung_at = NULL,
                   not_before = clock_timestamp() + make_interval(secs => :after_s)
             WHERE operation_id = :o AND state = 'done' AND position = (
                   SELECT max(position) FROM steps WHERE operation_id = :o AND name = :name)
            """
        ),
        {"o": operation_id, "name": name, "after_s": after_s},
    )


def release_predecessors(session: Session, *, node: str, owner: str) -> list[tuple[UUID, int]]:
    """Expire the leases of this node's earlier processes, which are known to be dead.

    Args:
        session: an open transaction.
        node: the node name that stands before ``#`` in owners.
        owner: the living process's own owner string.

    Returns:
        The steps that may be begun again at once.
    """
    rows = session.execute(
        text(
            """
            UPDATE steps SET lease_expires_at = clock_timestamp()
             WHERE split_part(owner, '#', 1) = :node AND owner <> :owner
               AND state IN ('running', 'undoing')
            RETURNING operation_id, position
            """
        ),
        {"node": node, "owner": owner},
    )
    return [(row.operation_id, row.position) for row in rows]


def database_now(session: Session) -> datetime:
    """Return the database's clock."""
    now: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, default=str)
