"""One look at the whole system: the records, the hosts and the stored outcomes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import redis

from lab.handle import Lab
from tests.chaos.checker.fleet_look import Fleet, look_at_fleet
from tests.chaos.checker.ledger_look import GuestRow, Ledger, read_ledger

LOOKS = 5


@dataclass(frozen=True)
class Look:
    """What every invariant is given.

    Args:
        ledger: the records.
        fleet: the hosts.
        outcomes: what the result backend holds, by task id.
        moving: guests whose records changed while the hosts were looked at; they are not judged.
        settled: whether everything should have ended.
        outcomes_lost_until: outcomes published earlier may be gone; None when none may.
    """

    ledger: Ledger
    fleet: Fleet
    outcomes: dict[UUID, dict[str, Any]]
    moving: frozenset[UUID]
    settled: bool
    outcomes_lost_until: datetime | None

    @property
    def guests(self) -> list[GuestRow]:
        """All guests that can be judged, deleted ones too."""
        return [g for g in self.ledger.guests.values() if g.id not in self.moving]


def look_at(lab: Lab, *, settled: bool, outcomes_lost_until: datetime | None) -> Look:
    """Look until no guest's record changes meanwhile, or as often as makes sense."""
    env = lab.env()
    database_url = env["INNKEEPER_DATABASE_URL"]
    for _ in range(LOOKS):
        before = read_ledger(database_url)
        fleet = look_at_fleet(lab)
        outcomes = _read_outcomes(env["INNKEEPER_RESULT_URL"], before)
        after = read_ledger(database_url).where_guests_stand()
        stood = before.where_guests_stand()
        moving = frozenset(g for g in stood | after if stood.get(g) != after.get(g))
        if not moving:
            break
    return Look(before, fleet, outcomes, moving, settled, outcomes_lost_until)


def _read_outcomes(result_url: str, ledger: Ledger) -> dict[UUID, dict[str, Any]]:
    task_ids = [*ledger.operations, *ledger.aliases]
    if not task_ids:
        return {}
    with redis.Redis.from_url(result_url) as store:
        found = store.mget([f"celery-task-meta-{task_id}" for task_id in task_ids])
    return {
        task_id: json.loads(meta)
        for task_id, meta in zip(task_ids, found, strict=True)
        if meta is not None
    }
