"""What is left of an operation, and what became of it: all that a message needs to be told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from innkeeper.states import OperationState, StepState


@dataclass(frozen=True, slots=True)
class RemainingStep:
    """A step that is yet to be done or undone, with what people are told of its operation."""

    position: int
    name: str
    host: str | None
    state: StepState
    kind: str
    src_host: str | None
    dst_host: str | None
    subject: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation has ended, and under which Celery task ids that is waited for."""

    operation_id: UUID
    kind: str
    state: OperationState
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    task_ids: list[UUID]

    @classmethod
    def from_row(cls, row: Iterable[Any]) -> "Outcome":
        """Return it from its columns: id, kind, state, result, error, the other task ids."""
        id_, kind, state, result, error, aliases = row
        return cls(id_, kind, OperationState(state), result, error, [id_, *aliases])


_REMAINING = text(
    """
    SELECT s.position, s.name, s.host, s.state, o.kind, o.src_host, o.dst_host,
           COALESCE(i.name, CAST(o.instance_id AS text), o.kind)
      FROM operations o
      JOIN steps s ON s.operation_id = o.id
      LEFT JOIN instances i ON i.id = o.instance_id
     WHERE o.id = :operation_id
       AND (o.state IN ('queued', 'running', 'undoing') OR o.owes_since IS NOT NULL)
       AND s.state IN ('queued', 'running', 'undo', 'undoing')
     ORDER BY s.position
    """
)


def list_remaining(connection: Connection, operation_id: UUID) -> list[RemainingStep]:
    """Return the steps that an operation has before it, or still owes, by position."""
    rows = connection.execute(_REMAINING, {"operation_id": operation_id})
    return [
        RemainingStep(position, name, host, StepState(state), *rest)
        for position, name, host, state, *rest in rows
    ]


_OUTCOMES = text(
    """
    SELECT o.id, o.kind, o.state, o.result, o.error,
           ARRAY(SELECT task_id FROM operation_aliases a WHERE a.operation_id = o.id)
      FROM operations o
     WHERE o.id = ANY(CAST(:ids AS uuid[])) AND o.finished_at IS NOT NULL
    """
)


def list_outcomes(connection: Connection, operation_ids: Sequence[UUID]) -> list[Outcome]:
    """Return the outcomes of those operations that have ended."""
    rows = connection.execute(_OUTCOMES, {"ids": list(operation_ids)})
    return [Outcome.from_row(row) for row in rows]
