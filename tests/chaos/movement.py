"""When an operation moved on after a death, read from its rows as fast as they can be read."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from tests.chaos.checker.ledger_look import connect

LOOK_EVERY_S = 0.01

_STANDS = """
    SELECT o.id, o.state, o.outcome_published_at IS NOT NULL AS is_published,
           ARRAY(SELECT s.position || ' ' || s.state || ' ' || s.attempt FROM steps s
                  WHERE s.operation_id = o.id ORDER BY s.position) AS steps
      FROM operations o WHERE o.id = ANY(%(ids)s)
"""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where an operation stands: its state, its outcome's publication, its steps and attempts."""

    state: str
    is_published: bool
    steps: tuple[str, ...]


def find_stands(
    ask: Callable[[str, Mapping[str, Any]], Iterable[dict[str, Any]]], ids: Sequence[UUID]
) -> dict[UUID, Stand]:
    """Find where operations stand; those without a row are left out.

    Args:
        ask: answers a SELECT with its values.
        ids: the operations.
    """
    return {
        row["id"]: Stand(row["state"], row["is_published"], tuple(row["steps"]))
        for row in ask(_STANDS, {"ids": list(ids)})
    }


def find_stand(connection: psycopg.Connection[dict[str, Any]], operation_id: UUID) -> Stand | None:
    """Find where an operation stands; None while it has no row."""
    return find_stands(connection.execute, [operation_id]).get(operation_id)


class Movement:
    """Watches an operation from a thread until it stands elsewhere than it did.

    Args:
        database_url: of the ledger.
        operation_id: the operation.
        stood: where it stood at the death.
    """

    def __init__(self, database_url: str, operation_id: UUID, stood: Stand | None) -> None:
        self.moved_at: float | None = None
        self._url = database_url
        self._operation_id = operation_id
        self._stood = stood
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="movement", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with connect(self._url) as connection:
            while not self._over.is_set():
                if find_stand(connection, self._operation_id) != self._stood:
                    self.moved_at = time.time()
                    return
                time.sleep(LOOK_EVERY_S)
