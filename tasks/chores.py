"""Periodic tasks: the sweeper, and the fan-out and work of the power-state sync.

Any number of beats may send them: each is harmless when it runs twice or not at all.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from sqlalchemy.orm import Session

from innkeeper.errors import InnkeeperError
from models.advisory import try_lock
from models.claims import HOST_IS_UP_S, heal_claims
from models.hosts import list_hosts_to_sync
from models.queries import record_event
from models.remote_disks import list_hosts_with_remote_disks
from tasks.catalogue import WORKFLOWS
from tasks.engine import Engine
from tasks.hydration import look_after_guests
from tasks.image_chores import register_image_chores
from tasks.power_sync import RequestVerb, sync_host
from tasks.sweeper import sweep_once
from tasks.workflow import queue_for

SWEEP = "innkeeper.sweep"
FAN_OUT_POWER_SYNC = "innkeeper.power.fan_out"
SYNC_POWER = "innkeeper.power.sync_host"
LOOK_AFTER_SOURCES = "innkeeper.hydrate.look_after"
# A transfer that nobody has taken up again for a day is not taken up any more.
ABANDONED_S = 86_400.0


def register_chores(app: Celery, engine: Callable[[], Engine]) -> None:
    """Register the periodic tasks.

    Args:
        app: the Celery application.
        engine: returns this process's engine.
    """

    def sweep(**_: Any) -> dict[str, int]:
        """Ring again what was not begun, turn back what was cancelled or is late.

        Queue: control; milliseconds.
        Idempotency: rows are marked as rung under SKIP LOCKED.
        Undo: none.
        On crash: the next one does it.
        Retries: the next beat.
        """
        parts = engine()
        report = sweep_once(parts.database, WORKFLOWS, parts.bells)
        return {"rung": report.rung, "turned_back": report.turned_back}

    def fan_out(**_: Any) -> int:
        """Ask every living host to compare its domains with the records.

        Queue: control; milliseconds.
        Idempotency: an advisory lock lets one at a time through.
        Undo: none.
        On crash: the next one does it.
        Retries: the next beat.
        """

        def hosts_to_sync(session: Session) -> tuple[list[str], list[str]]:
            if not try_lock(session, FAN_OUT_POWER_SYNC):
                return [], []
            names = list_hosts_to_sync(session, up_s=HOST_IS_UP_S)
            return names, [n for n in list_hosts_with_remote_disks(session) if n in set(names)]

        names, hydrating = engine().database.run(hosts_to_sync)
        for task, hosts in ((SYNC_POWER, names), (LOOK_AFTER_SOURCES, hydrating)):
            for name in hosts:
                app.send_task(task, queue=queue_for(name), ignore_result=True, kwargsrepr=name)
        return len(names)

    def sync_power(**_: Any) -> dict[str, int]:
        """Compare this host's domains with the records; heal claims that have drifted.

        Queue: host.<host>; milliseconds.
        Idempotency: writes only what differs.
        Undo: none.
        On crash: the next one does it.
        Retries: the next beat.
        """
        return sync_this_host(engine(), request_verb_by(app))

    def look_after_sources(**_: Any) -> dict[str, int]:
        """Fetch, hydrate, resume or give up this host's guests that read from their sources.

        Queue: host.<host>; milliseconds, and seconds for a source that does not answer.
        Idempotency: one at a time per host; looks first, and begins only what is not under way.
        Undo: none.
        On crash: the next one does it.
        Retries: the next beat.
        """
        return look_after_guests(engine(), request_verb_by(app))

    # What runs every few seconds would drown the operations in Flower.
    chores = (
        (SWEEP, sweep),
        (FAN_OUT_POWER_SYNC, fan_out),
        (SYNC_POWER, sync_power),
        (LOOK_AFTER_SOURCES, look_after_sources),
    )
    for name, body in chores:
        app.task(
            name=name, ignore_result=True, shared=False, send_events=False, throws=(InnkeeperError,)
        )(body)
    register_image_chores(app, engine)


def sync_this_host(engine: Engine, request_verb: RequestVerb) -> dict[str, int]:
    """Synchronise the host of this process; see sync_power."""
    services = engine.services
    if services is None:
        raise RuntimeError("the power-state sync was sent to a worker without a hypervisor")
    report = sync_host(
        engine.database,
        host=services.name,
        look=services.hypervisor.list_domains,
        is_complete=True,
        request_verb=request_verb,
    )

    def heal(session: Session) -> int:
        drifted = heal_claims(session, host=services.name)
        for instance_id in drifted:
            record_event(session, "claim.healed", instance_id=instance_id, host=services.name)
        return len(drifted)

    healed = engine.database.run(heal)
    pruned = sum(
        pool.images.prune_partials(older_than_s=ABANDONED_S) for pool in services.pools.values()
    )
    return {
        "domains": report.domains,
        "changed": report.changed,
        "settled": report.settled,
        "requested": report.requested,
        "claims_healed": healed,
        "partials_pruned": pruned,
    }


POWER_REASON = {
    "requested_by": "power-policy",
    "reason": "the power state departed from the record",
}
REASONS = {
    "hydrate": {
        "requested_by": "hydration",
        "reason": "the guest still reads its disk from the image's source",
    }
}


def request_verb_by(app: Celery) -> RequestVerb:
    """Return a function that enqueues a verb for a guest, as any other service would."""

    def request(verb: str, instance_id: UUID) -> None:
        app.send_task(
            f"innkeeper.instance.{verb}",
            task_id=str(uuid4()),
            queue="control",
            kwargs={
                "instance": str(instance_id),
                # Nobody asked for this guest to run: it gets no grace.
                **({"policy": {"force": True}} if verb == "stop" else {}),
                **REASONS.get(verb, POWER_REASON),
            },
            ignore_result=True,
        )

    return request
