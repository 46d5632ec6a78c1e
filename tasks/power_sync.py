"""Brings records and hypervisors together: one snapshot, one statement, then decisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from innkeeper.states import InstanceState, PowerPolicy
from models.ledger import database_now
from models.power import ObservedPower, PowerChange, settle_state, sync_power
from models.queries import record_event
from models.session import Database
from tasks.power_policy import Deed, decide
from virt.views import DomainView

log = structlog.get_logger(__name__)

RequestVerb = Callable[[str, UUID], None]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one synchronisation found."""

    domains: int
    changed: int
    settled: int
    requested: int


def observe(views: Sequence[DomainView]) -> list[ObservedPower]:
    """Return what the domains of a host say, without those that are not ours."""
    return [
        ObservedPower(view.instance_id, view.power_state, view.epoch)
        for view in views
        if view.epoch is not None
    ]


def sync_host(
    database: Database,
    *,
    host: str,
    look: Callable[[], Sequence[DomainView]],
    is_complete: bool,
    request_verb: RequestVerb,
) -> SyncReport:
    """Write what a host shows and act on what departs from the records.

    Args:
        database: where the records are.
        host: the host that was looked at.
        look: asks the hypervisor for its domains; for all of them when ``is_complete``.
        is_complete: whether a guest without a domain counts as off.
        request_verb: enqueues ``start`` or ``stop`` for a guest.
    """
    observed_at = database.run(database_now)
    views = look()
    observed = observe(views)

    def work(session: Session) -> tuple[list[PowerChange], list[UUID], list[tuple[str, UUID]]]:
        changes = sync_power(
            session,
            host=host,
            observed=observed,
            observed_at=observed_at,
            is_complete=is_complete,
        )
        wishes: list[tuple[str, UUID]] = []
        moves: list[tuple[UUID, InstanceState, InstanceState]] = []
        for change in changes:
            if change.is_owed:
                continue
            decision = decide(
                change.state,
                change.power_state,
                PowerPolicy(change.policy),
                is_second_look=not change.changed,
            )
            if decision.deed is Deed.SETTLE and decision.state is not None:
                moves.append((change.instance_id, change.state, decision.state))
            elif decision.deed in (Deed.START, Deed.STOP):
                wishes.append((decision.deed.value, change.instance_id))
            elif decision.deed is Deed.WARN and change.changed:
                log.warning("power state departs", instance=change.name, power=change.power_state)
            if change.changed:
                record_event(
                    session,
                    "instance.power_changed",
                    instance_id=change.instance_id,
                    host=host,
                    data={"was": change.previous, "is": change.power_state},
                )
        return changes, settle_state(session, moves), wishes

    changes, settled, wishes = database.run(work)
    for verb, instance_id in wishes:
        request_verb(verb, instance_id)
    return SyncReport(len(views), sum(c.changed for c in changes), len(settled), len(wishes))
