"""What Postgres says of guests, operations, steps, claims and events; plain SQL, one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, dict_row

DEADLINE_SLACK_S = 30
LIVE = frozenset({"queued", "running", "undoing"})
UNFINISHED = frozenset({"queued", "running", "undo", "undoing"})
OWED = frozenset({"undo", "undoing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRow:
    """A guest's record."""

    id: UUID
    name: str
    host: str | None
    state: str
    power_state: str
    power_policy: str
    operation_id: UUID | None
    epoch: int
    domain_epoch: int
    pools: list[str]
    updated_at: datetime

    @property
    def is_living(self) -> bool:
        """Whether the record says that there is such a guest."""
        return self.state != "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRow:
    """An operation; the two last say whether it lives or ended too late."""

    id: UUID
    kind: str
    state: str
    instance_id: UUID | None
    src_host: str | None
    dst_host: str | None
    state_before: str | None
    is_committed: bool
    cancel_requested: bool
    handover: str | None
    created_at: datetime
    finished_at: datetime | None
    outcome_published_at: datetime | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    is_overdue: bool
    ended_late: bool

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.state in LIVE

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"{self.kind} operation {self.id}"

    @property
    def effect(self) -> str | None:
        """Where its error says that it left things; None without an error."""
        return None if self.error is None else str(self.error.get("effect"))

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts it works on."""
        return frozenset(host for host in (self.src_host, self.dst_host) if host is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """A step of an operation."""

    operation_id: UUID
    position: int
    name: str
    host: str | None
    state: str
    attempt: int
    failures: int
    rings: int
    rung_at: datetime | None
    owner: str | None
    lease_expires_at: datetime | None
    waiting_for: str | None
    detail: dict[str, Any]
    undo: dict[str, Any]
    error: dict[str, Any] | None
    log: list[dict[str, Any]]
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """What a guest has claimed on a host, for which operation."""

    host: str
    instance_id: UUID
    operation_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened."""

    kind: str
    at: datetime
    instance_id: UUID | None
    operation_id: UUID | None


@dataclass(frozen=True)
class Ledger:
    """One snapshot of the database."""

    guests: dict[UUID, GuestRow]
    operations: dict[UUID, OperationRow]
    steps: dict[UUID, list[StepRow]]
    claims: list[ClaimRow]
    events: list[EventRow]
    aliases: dict[UUID, UUID]
    """Task id → the operation it waits for."""

    @cached_property
    def by_guest(self) -> dict[UUID, list[OperationRow]]:
        """Each guest's operations, oldest first."""
        found: dict[UUID, list[OperationRow]] = {}
        for operation in sorted(self.operations.values(), key=lambda one: one.created_at):
            if operation.instance_id is not None:
                found.setdefault(operation.instance_id, []).append(operation)
        return found

    @cached_property
    def live(self) -> list[OperationRow]:
        """Operations that have not ended."""
        return [operation for operation in self.operations.values() if operation.is_live]

    def find_live(self, instance_id: UUID) -> OperationRow | None:
        """Return the live operation of a guest."""
        return next((o for o in self.by_guest.get(instance_id, []) if o.is_live), None)

    def find_newest(self, instance_id: UUID) -> OperationRow | None:
        """Return a guest's last operation."""
        return next(reversed(self.by_guest.get(instance_id, [])), None)

    def homes(self, guest: GuestRow) -> frozenset[str]:
        """Return the hosts on which something of a guest may be now."""
        if not guest.is_living:
            return frozenset()
        homes = frozenset([guest.host]) if guest.host is not None else frozenset[str]()
        live = self.find_live(guest.id)
        newest = self.find_newest(guest.id)
        if live is not None:
            homes |= live.hosts
        elif guest.state == "unknown" and newest is not None:
            # Nothing was cleaned up, on purpose.
            homes |= newest.hosts
        return homes

    def where_guests_stand(self) -> dict[UUID, tuple[object, ...]]:
        """Return for each guest what must not change while the hosts are looked at."""
        return {
            g.id: (g.host, g.state, g.operation_id, g.epoch, g.domain_epoch)
            for g in self.guests.values()
        }


_GUESTS = """
    SELECT id, name, host, state, power_state, operation_id, epoch, domain_epoch,
           pool::text || ARRAY(SELECT DISTINCT disk->>'pool'
                                 FROM jsonb_array_elements(spec->'disks') disk
                                WHERE disk->>'pool' <> pool ORDER BY 1) AS pools,
           updated_at,
           COALESCE(spec->>'power_policy', 'stop') AS power_policy
      FROM instances
"""
OPERATIONS = """
    SELECT id, kind, state, instance_id, src_host, dst_host, state_before, is_committed,
           cancel_requested, params->'policy'->>'handover' AS handover, created_at, finished_at,
           outcome_published_at, result, error,
           finished_at IS NULL AND COALESCE(
               deadline_at + make_interval(secs => %(slack_s)s) < clock_timestamp(), false)
               AS is_overdue,
           COALESCE(finished_at > deadline_at + make_interval(secs => %(slack_s)s), false)
               AS ended_late
      FROM operations
"""
"""Rows of `OperationRow`; takes `slack_s`, the `DEADLINE_SLACK_S`."""

_STEPS = """
    SELECT operation_id, position, name, host, state, attempt, failures, rings, rung_at, owner,
           lease_expires_at, waiting_for, detail, undo, error, log, started_at, finished_at
      FROM steps ORDER BY operation_id, position
"""
_CLAIMS = "SELECT host, instance_id, operation_id FROM claims"
_EVENTS = "SELECT kind, at, instance_id, operation_id FROM events ORDER BY id"
_ALIASES = "SELECT task_id, operation_id FROM operation_aliases"


def connect(database_url: str, **options: Any) -> psycopg.Connection[dict[str, Any]]:
    """Open a connection of its own on which every statement is a transaction.

    Args:
        database_url: SQLAlchemy's or libpq's.
        options: of libpq.
    """
    url = database_url.replace("postgresql+psycopg://", "postgresql://", 1)
    return psycopg.connect(url, autocommit=True, row_factory=dict_row, **options)


def read_ledger(database_url: str) -> Ledger:
    """Read everything at one moment."""
    with connect(database_url) as connection:
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        guests = connection.cursor(row_factory=class_row(GuestRow)).execute(_GUESTS).fetchall()
        operations = (
            connection.cursor(row_factory=class_row(OperationRow))
            .execute(OPERATIONS, {"slack_s": DEADLINE_SLACK_S})
            .fetchall()
        )
        steps: dict[UUID, list[StepRow]] = {}
        for step in connection.cursor(row_factory=class_row(StepRow)).execute(_STEPS):
            steps.setdefault(step.operation_id, []).append(step)
        return Ledger(
            guests={guest.id: guest for guest in guests},
            operations={operation.id: operation for operation in operations},
            steps=steps,
            claims=connection.cursor(row_factory=class_row(ClaimRow)).execute(_CLAIMS).fetchall(),
            events=connection.cursor(row_factory=class_row(EventRow)).execute(_EVENTS).fetchall(),
            aliases={row["task_id"]: row["operation_id"] for row in connection.execute(_ALIASES)},
        )
