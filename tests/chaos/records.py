"""What Postgres says, in plain SQL, by none of the product's own code."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

PATIENCE_S = 60.0
FINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class OperationRow:
    """An operation as its row says.

    Args:
        task_ids: the ids under which callers wait for it.
    """

    id: UUID
    kind: str
    state: str
    instance_id: UUID | None
    src_host: str | None
    dst_host: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    task_ids: tuple[UUID, ...]

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL


_OPERATION = """
    SELECT o.id, o.kind, o.state, o.instance_id, o.src_host, o.dst_host, o.result, o.error,
           ARRAY(SELECT a.task_id FROM operation_aliases a WHERE a.operation_id = o.id)
               || o.id AS task_ids
      FROM operations o
"""


class Records:
    """Reads rows through one connection, which is opened anew whenever it was lost.

    Args:
        url: SQLAlchemy's or libpq's URL of the lab's Postgres.
        patience_s: how long Postgres may be away.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._url = url.replace("postgresql+psycopg://", "postgresql://", 1)
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a query, however often Postgres goes away meanwhile.

        Args:
            sql: one SELECT.
            values: for its ``%(name)s``.

        Raises:
            psycopg.OperationalError: it stayed away longer.
        """
        give_up_at = time.monotonic() + self._patience_s
        while True:
            try:
                return self._connect().execute(sql, values).fetchall()
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.05)

    def find_operation(self, task_id: UUID) -> OperationRow | None:
        """Find the operation that a task's id stands for."""
        found = self.rows(
            _OPERATION + " WHERE o.id = %(id)s OR o.id IN "
            "(SELECT operation_id FROM operation_aliases WHERE task_id = %(id)s)",
            {"id": task_id},
        )
        return _operation(found[0]) if found else None

    def list_live(self) -> list[OperationRow]:
        """Return the operations that have not ended."""
        return [
            _operation(row)
            for row in self.rows(_OPERATION + " WHERE o.state IN ('queued', 'running', 'undoing')")
        ]

    def find_guest(self, name: str) -> dict[str, Any] | None:
        """Find the living guest of a name: id, state, power_state, host, operation_id."""
        found = self.rows(
            "SELECT id, state, power_state, host, operation_id FROM instances "
            "WHERE name = %(name)s AND state <> 'deleted'",
            {"name": name},
        )
        return found[0] if found else None

    def tell(self, operation_id: UUID) -> str:
        """Return an operation's story, one line per step and note."""
        lines = [
            "{kind} {id} {state} created {created_at:%H:%M:%S.%f} ended {finished_at} "
            "{src_host} → {dst_host} cancel={cancel_requested} committed={is_committed} "
            "error={error}".format(**row)
            for row in self.rows("SELECT * FROM operations WHERE id = %(id)s", {"id": operation_id})
        ]
        steps = self.rows(
            "SELECT * FROM steps WHERE operation_id = %(id)s ORDER BY position",
            {"id": operation_id},
        )
        for row in steps:
            lines.append(
                "  {position} {name} on {host} {state} attempt {attempt} failures {failures} "
                "{started_at} … {finished_at} owner={owner} waiting={waiting_for} "
                "error={error} detail={detail} undo={undo}".format(**row)
            )
            lines += [f"    {note['at']} {note['text']}" for note in row["log"]]
        return "\n".join(lines)

    def close(self) -> None:
        """Close the connection; the next query opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=3,
                application_name="chaos",
            )
        return self._connection


def _operation(row: dict[str, Any]) -> OperationRow:
    return OperationRow(**{**row, "task_ids": tuple(row["task_ids"])})
