"""A host that was fenced is back: what it has lost meanwhile is removed before it does anything.

Only what an evacuation's record proves stale is touched: the domain of a guest that was taken away
from this very host, with an older epoch than the guest's record, and its console's log here. The
guest's own files are never touched: they are on storage that its new host shares.
"""

from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from models.fencing import (
    StaleCopy,
    finish_return,
    list_stale_copies,
    list_unexpected,
    record_cleaned,
)
from models.queries import record_event
from models.session import Database
from tasks.context import HostServices
from tasks.crashpoints import crash_point
from virt.guest_lock import guest_lock

log = structlog.get_logger(__name__)

LOCK_TIMEOUT_S = 60.0


def clean_returned_host(database: Database, services: HostServices) -> list[UUID]:
    """Remove the stale copies of a host that was fenced, and record that it may act again.

    Safe to begin again at any point. Its return must have been noted before, so that no guest is
    taken away from it meanwhile.

    Args:
        database: where the records are.
        services: the host's parts.

    Returns:
        The guests whose copies were removed.
    """
    host = services.name
    domains = {
        view.instance_id: view.epoch
        for view in services.hypervisor.list_domains()
        if view.epoch is not None
    }
    stale = database.run(lambda session: list_stale_copies(session, host, domains))
    crash_point("return", "cleaning")
    removed = [copy.instance_id for copy in stale if _remove(database, services, copy)]
    database.run(lambda session: finish_return(session, host))
    log.info("fenced host is clean", host=host, removed=len(removed))
    return removed


def _remove(database: Database, services: HostServices, copy: StaleCopy) -> bool:
    hypervisor, instance_id = services.hypervisor, copy.instance_id
    with guest_lock(services.lock_dir, instance_id, timeout_s=LOCK_TIMEOUT_S):
        view = hypervisor.find_domain(instance_id)
        if view is None or view.epoch is None or view.epoch >= copy.record_epoch:
            return False
        log.warning(
            "removing a stale copy",
            instance=copy.name,
            domain_epoch=view.epoch,
            record_epoch=copy.record_epoch,
            power=view.power_state,
            now_on=copy.host,
        )
        hypervisor.ensure_destroyed(instance_id)
        # While the domain is there a death in between is made good at the next return.
        services.console_path(instance_id).unlink(missing_ok=True)
        hypervisor.ensure_undefined(instance_id)

    def record(session: Session) -> None:
        record_cleaned(session, services.name, instance_id)
        record_event(
            session,
            "instance.stale_copy_removed",
            instance_id=instance_id,
            host=services.name,
            data={
                "domain_epoch": copy.domain_epoch,
                "record_epoch": copy.record_epoch,
                "was": view.power_state,
            },
        )

    database.run(record)
    return True


def report_unexpected(database: Database, services: HostServices) -> int:
    """Tell of the domains that no record places on this host; they are left alone.

    Returns:
        How many there are.
    """
    views = services.hypervisor.list_domains()
    ours = [(view.instance_id, view.epoch) for view in views if view.epoch is not None]
    for view in views:
        if view.epoch is None:
            log.warning("a domain that is not ours is left alone", domain=str(view.instance_id))

    def report(session: Session) -> int:
        found = list_unexpected(session, services.name, ours)
        for each in found:
            log.warning("a domain that no record places here is left alone", **each)
            record_event(session, "domain.unexpected", host=services.name, data=each)
        return len(found)

    return database.run(report)
