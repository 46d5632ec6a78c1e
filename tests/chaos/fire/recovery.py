"""How long it takes until an operation moves on after the process that worked on it has died."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import psycopg

from tests.chaos.fire.records import Records
from tests.chaos.movement import Stand, find_stands

POLL_S = 0.02
GIVE_UP_S = 90.0
SNAPSHOT_S = 0.5
"""A death while Postgres is away too is not measured: what was in hand cannot be seen in time."""

# What the node held, and what it had just handed on without ringing.
_IN_HAND = """
    SELECT DISTINCT o.id FROM operations o JOIN steps s ON s.operation_id = o.id
     WHERE o.state IN ('queued', 'running', 'undoing') AND s.host = %(host)s
       AND ((s.state IN ('running', 'undoing') AND split_part(s.owner, '#', 1) = %(node)s)
            OR s.finished_at > clock_timestamp() - interval '0.3 s')
"""
# Control holds no steps: requests whose first bell has not rung, and outcomes not told.
_AT_CONTROLS = """
    SELECT o.id FROM operations o
     WHERE (o.state = 'queued' AND o.created_at > clock_timestamp() - interval '0.3 s')
        OR (o.finished_at > clock_timestamp() - interval '0.3 s'
            AND o.outcome_published_at IS NULL)
"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One operation that moved on.

    Args:
        role: who was killed.
        operation_id: what it worked on.
        from_kill_ms: since its death.
        from_restart_ms: since its successor was started; None when that came later.
        is_restarted_at_once: whether the successor was started right after the death.
    """

    role: str
    operation_id: UUID
    from_kill_ms: float
    from_restart_ms: float | None
    is_restarted_at_once: bool


@dataclass(slots=True)
class Death:
    """A process that was killed, and what it had in hand.

    Args:
        restarted_at: when its successor was started, by `time.time`.
    """

    role: str
    killed_at: float
    stood: dict[UUID, Stand]
    restarted_at: float | None = None


@dataclass
class RecoveryClock:
    """Measures every death that it is told of.

    Args:
        database_url: of the lab's Postgres.
    """

    database_url: str
    found: list[Recovery] = field(default_factory=list)
    unmoved: list[tuple[str, UUID]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def began(self, role: str, killed_at: float) -> Death:
        """Look what a process had in hand that has just been killed, and wait for its going on.

        Args:
            role: ``worker:HOST`` or ``control``; of others nothing is measured.
            killed_at: by `time.time`.
        """
        kind, _, host = role.partition(":")
        death = Death(role, killed_at, {})
        if kind not in ("worker", "control"):
            return death
        sql = _AT_CONTROLS if kind == "control" else _IN_HAND
        with Records(self.database_url, patience_s=SNAPSHOT_S) as records:
            try:
                rows = records.rows(sql, {"host": host, "node": f"host-{host}"})
                death.stood = find_stands(records.rows, [row["id"] for row in rows])
            except psycopg.OperationalError:
                return death
        if death.stood:
            thread = threading.Thread(target=self._watch, args=(death,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return death

    def join(self, timeout_s: float) -> None:
        """Wait for what is still being measured."""
        give_up_at = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))

    def figures_ms(self) -> dict[str, float | None]:
        """Return p50, p95 and max from death to going on, where the successor came at once."""
        return percentiles([r.from_kill_ms for r in self.found if r.is_restarted_at_once])

    def find_slow(self, limit_ms: float) -> list[Recovery]:
        """Return those that took longer, although the successor came at once."""
        return [r for r in self.found if r.is_restarted_at_once and r.from_kill_ms > limit_ms]

    def figures_from_restart_ms(self) -> dict[str, float | None]:
        """Return the same from the successor's start, of all."""
        return percentiles([r.from_restart_ms for r in self.found if r.from_restart_ms is not None])

    def _watch(self, death: Death) -> None:
        waiting = dict(death.stood)
        with Records(self.database_url) as records:
            while waiting and time.time() - death.killed_at < GIVE_UP_S:
                now_stand = find_stands(records.rows, list(waiting))
                now = time.time()
                for operation_id, stand in now_stand.items():
                    if stand != waiting[operation_id]:
                        del waiting[operation_id]
                        self._note(death, operation_id, now)
                time.sleep(POLL_S)
        self.unmoved += [(death.role, operation_id) for operation_id in waiting]

    def _note(self, death: Death, operation_id: UUID, now: float) -> None:
        restarted_at = death.restarted_at
        self.found.append(
            Recovery(
                death.role,
                operation_id,
                round((now - death.killed_at) * 1000, 1),
                None if restarted_at is None else round((now - restarted_at) * 1000, 1),
                restarted_at is not None and restarted_at - death.killed_at < 0.5,
            )
        )


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95 and max by the nearest rank; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p95": None, "max": None}
    rank = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {
        name: ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
        for name, share in rank.items()
    }
