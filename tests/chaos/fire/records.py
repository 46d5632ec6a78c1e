"""What Postgres says, in plain SQL, by none of the product's own code."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import psycopg

from tests.chaos.checker.ledger_look import (
    DEADLINE_SLACK_S,
    LIVE,
    OPERATIONS,
    OperationRow,
    connect,
)
from tests.chaos.checker.timeline import tell_operation

PATIENCE_S = 60.0


class Records:
    """Reads rows through one connection, which is opened anew whenever it was lost.

    Args:
        url: SQLAlchemy's or libpq's URL of the lab's Postgres.
        patience_s: how long Postgres may be away.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._url = url
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
        found = self._operations(
            "id = %(id)s OR id IN "
            "(SELECT operation_id FROM operation_aliases WHERE task_id = %(id)s)",
            {"id": task_id},
        )
        return found[0] if found else None

    def list_live(self) -> list[OperationRow]:
        """Return the operations that have not ended."""
        return self._operations("state = ANY(%(live)s)", {"live": list(LIVE)})

    def find_guest(self, name: str) -> dict[str, Any] | None:
        """Find the living guest of a name: id, state, power_state, host, operation_id."""
        found = self.rows(
            "SELECT id, state, power_state, host, operation_id FROM instances "
            "WHERE name = %(name)s AND state <> 'deleted'",
            {"name": name},
        )
        return found[0] if found else None

    def tell(self, operation_id: UUID) -> list[str]:
        """Return an operation's story, one line per step and note."""
        return tell_operation(self._url, operation_id)

    def close(self) -> None:
        """Close the connection; the next query opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None:
            self._connection = connect(self._url, connect_timeout=3, application_name="chaos")
        return self._connection

    def _operations(self, where: str, values: Mapping[str, Any]) -> list[OperationRow]:
        found = self.rows(f"{OPERATIONS} WHERE {where}", {"slack_s": DEADLINE_SLACK_S, **values})
        return [OperationRow(**row) for row in found]
