"""Looks after a host's guests that still read from their images' sources, again and again.

Nothing is remembered between two looks: what is to be done follows from the rows, the cache and
the domains as they are. An operation does what lasts.
"""

import threading
from uuid import uuid4

import structlog
from sqlalchemy import update
from sqlalchemy.orm import Session

from innkeeper.addresses import show_address
from innkeeper.errors import Busy, InnkeeperError, SourceLost
from innkeeper.remote_source import parse_remote_source
from models.advisory import lock
from models.instance import Instance
from models.operations import NewOperation, insert_operation
from models.queries import record_event
from models.remote_disks import (
    RemoteDisk,
    find_prefetch,
    find_remote_disk,
    is_still_needed,
    list_remote_disks,
)
from tasks.context import HostServices, get_pool
from tasks.engine import Engine
from tasks.hydrate import lost_error
from tasks.hydration_policy import Act, Look, decide
from tasks.power_sync import RequestVerb
from tasks.prefetch import PREFETCH
from virt.guest_lock import guest_lock
from virt.remote_probe import answers
from virt.views import DomainView

log = structlog.get_logger(__name__)

PREFETCH_DEADLINE_S = 86_400.0
RESUMES = 4
RESUME_LOOK_S = 0.3
_one_at_a_time = threading.Lock()


def look_after_guests(engine: Engine, request_verb: RequestVerb) -> dict[str, int]:
    """Do what is next for every guest of this host that reads from its image's source.

    Args:
        engine: this process's parts.
        request_verb: enqueues a verb for a guest.

    Returns:
        How often each act was taken.
    """
    services = engine.services
    if services is None:
        raise RuntimeError("a look after sources was sent to a worker without a hypervisor")
    if not _one_at_a_time.acquire(blocking=False):
        return {}
    counts: dict[str, int] = {}
    try:
        host = services.name
        for disk in engine.database.run(lambda session: list_remote_disks(session, host)):
            try:
                act = _look_after(engine, services, disk, request_verb)
            except InnkeeperError as error:
                log.warning("guest not looked after", instance=disk.name, error=str(error))
                continue
            counts[act.value] = counts.get(act.value, 0) + 1
    finally:
        _one_at_a_time.release()
    return counts


def _look_after(
    engine: Engine, services: HostServices, disk: RemoteDisk, request_verb: RequestVerb
) -> Act:
    view = services.hypervisor.find_domain(disk.instance_id)
    waits = view is not None and view.epoch == disk.domain_epoch and view.waits_for_disk
    pool = get_pool(services, disk.pool)
    cached = pool.images.find(disk.known_sha256, "raw") if disk.known_sha256 else None
    wanted = disk.wanted_on(services.name)
    running = engine.database.run(lambda session: find_prefetch(session, wanted))
    act = decide(
        Look(
            is_held=disk.is_held,
            is_cached=cached is not None,
            is_fetching=running is not None,
            is_condemned=disk.condemned is not None,
            waits_for_disk=waits,
            gives_up=disk.source_lost == "fail",
            is_fresh=disk.age_s < services.remote.hydration_delay_s,
        )
    )
    if not disk.is_held:
        engine.database.run(lambda session: _note_source(session, services, disk, waits))
    if act is Act.FETCH:
        _begin_prefetch(engine, services, disk)
    elif act is Act.HYDRATE:
        request_verb("hydrate", disk.instance_id)
    elif act is Act.RESUME and answers(parse_remote_source(disk.url)):
        _resume(engine, services, disk)
    if act is Act.RESUME and running is None:
        _begin_prefetch(engine, services, disk)
    return act


def _note_source(session: Session, services: HostServices, disk: RemoteDisk, waits: bool) -> None:
    """Write that a guest's source is lost, or back, when that is news."""
    was_lost = disk.fault == SourceLost.code
    if waits == was_lost:
        return
    fault = lost_error(disk.name, disk.url).to_wire() if waits else None
    written = session.execute(
        update(Instance)
        .where(Instance.id == disk.instance_id, Instance.operation_id.is_(None))
        .values(fault=fault)
        .returning(Instance.id)
    ).scalar_one_or_none()
    if written is not None:
        record_event(
            session,
            "instance.source_lost" if waits else "instance.source_back",
            instance_id=disk.instance_id,
            host=services.name,
            data={"source": show_address(disk.url)},
        )


def _begin_prefetch(engine: Engine, services: HostServices, disk: RemoteDisk) -> None:
    """Begin to bring a guest's image into the cache, unless that is under way."""
    operation_id = uuid4()
    wanted = disk.wanted_on(services.name)

    def begin(session: Session) -> bool:
        lock(session, f"prefetch:{wanted.host}:{wanted.pool}:{wanted.url}")
        is_running = find_prefetch(session, wanted) is not None
        if is_running or not is_still_needed(session, wanted):
            return False
        new = NewOperation(
            id=operation_id,
            kind=PREFETCH.kind,
            params={
                "url": wanted.url,
                "pool": wanted.pool,
                "sha256": wanted.sha256,
                "sha512": wanted.sha512,
                "instance": disk.name,
            },
            request_digest="",
            deadline_s=PREFETCH_DEADLINE_S,
            requested_by="hydration",
            reason=f"{disk.name} still reads its disk from the image's source",
            dst_host=wanted.host,
        )
        insert_operation(session, new, PREFETCH.plan(src=None, dst=wanted.host))
        return True

    if engine.database.run(begin):
        engine.bells.ring(operation_id)


def _resume(engine: Engine, services: HostServices, disk: RemoteDisk) -> None:
    """Let a guest run on whose source is back; nobody else acts on it meanwhile."""
    hypervisor = services.hypervisor
    try:
        with guest_lock(services.lock_dir, disk.instance_id, timeout_s=0):
            now = engine.database.run(lambda session: find_remote_disk(session, disk.instance_id))
            if now is None or now.is_held or now.epoch != disk.epoch:
                return
            with hypervisor.watch(disk.instance_id) as watch:
                # QEMU's connection to the source is as dead as it was: the first reads through it
                # may fail again.
                for _ in range(RESUMES):
                    if not _waits(hypervisor.find_domain(disk.instance_id), disk):
                        return
                    hypervisor.ensure_resumed(disk.instance_id)
                    watch.wait_for(lambda event: event.detail == "io_error", RESUME_LOOK_S)
    except Busy:
        return


def _waits(view: DomainView | None, disk: RemoteDisk) -> bool:
    return view is not None and view.epoch == disk.domain_epoch and view.waits_for_disk
