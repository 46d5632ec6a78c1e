"""The moving itself: prepare files, start or adopt libvirt's job, watch it, look afterwards."""

import time
from dataclasses import replace
from typing import Any

from innkeeper.errors import HypervisorUnavailable, InnkeeperError, OutcomeUnknown
from innkeeper.states import Handover, PowerState
from innkeeper.types import MigrationPolicy
from models.migrations import find_applied
from tasks.context import StepContext
from tasks.convergence import list_downtimes_ms
from tasks.copied_pools import list_copied_disks, list_copied_pools, list_shared_pools
from tasks.migration_checks import get_dst_address
from tasks.migration_disks import make_landing_disks
from tasks.migration_forecast import foretell
from tasks.migration_link import probe_destination
from tasks.migration_policy import policy_of
from tasks.migration_storage import require_answers
from tasks.migration_tls import (
    is_encrypted,
    libvirt_uri,
)
from tasks.migration_watch import ABORT_PATIENCE_S, MigrationWatch, abort
from tasks.post_copy import commit_post_copy, interrupted, may_post_copy
from tasks.reconcile import Look
from tasks.workflow import Done
from virt.domain_xml import for_destination
from virt.migration import MigrationRequest
from virt.views import SHUTOFF_MIGRATED, STATE_SHUTOFF, DomainView, JobStats


def prepare(context: StepContext) -> Done:
    """Make what the destination needs; see live_migrate.prepare_destination."""
    context.host.console_dir.mkdir(parents=True, exist_ok=True)
    # QEMU makes the log when the guest arrives, and leaves it there when it does not stay.
    context.intend(console=str(context.host.console_path(context.instance.id)))
    context.midway()
    require_answers(context, list_shared_pools(context))
    if not list_copied_pools(context):
        return Done({"made": []})
    return make_landing_disks(context)


def move(context: StepContext) -> dict[str, Any]:
    """Run or adopt the job until it has ended; return what the source shows then."""
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    started = time.monotonic()
    error: InnkeeperError | None = None
    stats: JobStats | None = None
    stopped_at_s: float | None = None
    view = hypervisor.find_domain(instance_id)
    adopted = False
    if view is not None and view.is_in_post_copy:
        adopted = True
        stats, error = _see_post_copy_through(context, view)
    # Looked at anew because its outcome is not clear; it must not be sent twice.
    elif context.is_owed or "src" in context.step.detail:
        context.note(f"attempt {context.step.key.attempt}: only looks, the guest was sent before")
        # What libvirt said then, and the figures, are as true as they were.
        return {**context.step.detail, "src": look_at_source(context).to_wire()}
    elif view is not None and view.power_state in (PowerState.RUNNING, PowerState.PAUSED):
        running = hypervisor.find_migration_job(instance_id)
        if running is not None:
            adopted = True
            context.note(f"attempt {context.step.key.attempt}: adopted the running migration")
            stats, error = _adopt(context)
        elif view.power_state == PowerState.RUNNING or not context.step.was_begun_before:
            stats, error, stopped_at_s = _run_job(context)
    elif context.step.was_begun_before:
        context.note(f"attempt {context.step.key.attempt}: found that the guest has left")
    look = look_at_source(context)
    if look.is_in_post_copy:
        commit_post_copy(context)
        raise interrupted(context, error)
    return {
        "src": look.to_wire(),
        "adopted": adopted,
        "error": None
        if error is None
        else error.with_details(step=context.step.name, host=context.host.name).to_wire(),
        "total_ms": stats.total_ms if stats else round((time.monotonic() - started) * 1000, 1),
        "downtime_ms": stats.downtime_ms if stats else None,
        "stats": stats.to_json() if stats else {},
        # Libvirt's own figure leaves out what it does between the arrival and its return.
        "standstill_ms": round((time.monotonic() - stopped_at_s) * 1000, 1)
        if stopped_at_s is not None
        else None,
    }


def look_at_source(context: StepContext) -> Look:
    """Look at the source's domain.

    Raises:
        OutcomeUnknown: there is one, but it is not the one that the record means.
    """
    view = context.host.hypervisor.find_domain(context.instance.id)
    if view is None:
        return Look(None, has_left=True)
    if view.epoch != context.instance.domain_epoch:
        raise OutcomeUnknown(
            f"The domain on {context.host.name} is of epoch {view.epoch}, the record of "
            f"{context.instance.domain_epoch}.",
            {"domain_epoch": view.epoch, "record_epoch": context.instance.domain_epoch},
        )
    has_left = view.state == STATE_SHUTOFF and view.reason == SHUTOFF_MIGRATED
    return Look(
        view.power_state, bool(view.has_job), has_left, is_in_post_copy=view.is_in_post_copy
    )


def _adopt(context: StepContext) -> tuple[JobStats | None, InnkeeperError | None]:
    """See a job to its end that another process began."""
    told = context.database.run(lambda session: find_applied(session, context.operation.id))
    policy = policy_of(context.operation.params).model_copy(update=told)
    watch = MigrationWatch(context, policy)
    error = watch.see_adopted()
    return watch.completed_stats, error


def _see_post_copy_through(
    context: StepContext, view: DomainView
) -> tuple[JobStats | None, InnkeeperError | None]:
    """See a post-copy to its end that began before this attempt; take it up again if it broke."""
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    commit_post_copy(context)
    if not view.has_broken_post_copy and hypervisor.find_migration_job(instance_id) is not None:
        context.note(f"attempt {context.step.key.attempt}: adopted the running post-copy")
        return _adopt(context)
    reason = probe_destination(context)
    if reason is not None:
        raise interrupted(
            context, HypervisorUnavailable(f"{context.operation.dst_host}: {reason}.")
        )
    if context.step.undo.get("resumes") is None:
        context.intend(resumes=True)
        context.note("takes up the interrupted post-copy again")
    policy = policy_of(context.operation.params)
    request = replace(_request(context, policy), is_resumed_post_copy=True)
    job = hypervisor.migrate(instance_id, request)
    context.midway()
    watch = MigrationWatch(context, policy)
    error = watch.see(job)
    if error is None:
        context.note("the rest of the memory has followed on a new connection")
        return watch.completed_stats, None
    context.log.info("post-copy not taken up", reason=error.message)
    # It may be refused because QEMU's old connection has outlived the break.
    watch.see_adopted(is_broken=True)
    if look_at_source(context).is_in_post_copy:
        raise interrupted(context, error)
    context.note("the rest of the memory has followed on the old connection, which came back")
    return watch.completed_stats, None


def _run_job(
    context: StepContext,
) -> tuple[JobStats | None, InnkeeperError | None, float | None]:
    policy = policy_of(context.operation.params)
    told = foretell(context, policy)
    # Reads the wishes of the outside too: a small guest is gone before the job's first look.
    context.progress(0.0, told["why"] if told["dirty_bytes_s"] is not None else "starting")
    job = context.host.hypervisor.migrate(context.instance.id, _request(context, policy))
    context.midway()
    watch = MigrationWatch(context, policy)
    error = watch.see(job)
    return watch.completed_stats, error, job.stopped_at_s


def ensure_no_job(context: StepContext) -> None:
    """End a job that still runs, and wait for its end.

    Raises:
        HypervisorUnavailable: when it does not end.
    """
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    give_up_at = time.monotonic() + ABORT_PATIENCE_S
    while hypervisor.find_migration_job(instance_id) is not None:
        abort(context)
        context.assert_owned()
        if time.monotonic() > give_up_at:
            raise HypervisorUnavailable("Libvirt does not end the migration job.")
        time.sleep(0.2)


def _request(context: StepContext, policy: MigrationPolicy) -> MigrationRequest:
    operation, instance = context.operation, context.instance
    copied = tuple(disk.target for disk in list_copied_disks(context))
    hypervisor = context.host.hypervisor
    address = get_dst_address(context)
    live_xml = hypervisor.dump_xml(instance.id, migratable=True)
    dst_xml = for_destination(live_xml, epoch=operation.epoch, operation_id=operation.id)
    return MigrationRequest(
        dst_uri=libvirt_uri(address, is_tls=is_encrypted(context)),
        migrate_uri=f"tcp://{address}",
        listen_address=context.details["check_destination"].get("listen_address"),
        tls_name=address if is_encrypted(context) else None,
        dst_xml=dst_xml,
        persistent_xml=dst_xml,
        migrate_disks=copied,
        is_incremental=bool(copied),
        is_paused_arrival=policy.handover == Handover.SAFE,
        post_copy=may_post_copy(context, policy),
        parallel_connections=policy.parallel_connections,
        bandwidth_mib_s=policy.bandwidth_mib_s,
        auto_converge=policy.auto_converge,
        # A probe file has shown that both hosts see one directory, and the operator vouches for
        # its coherence; libvirt knows only some file systems by name.
        is_unsafe=any(pool.trusted_coherent for pool in list_shared_pools(context)),
        max_downtime_ms=list_downtimes_ms(policy.max_downtime_ms)[0],
    )
