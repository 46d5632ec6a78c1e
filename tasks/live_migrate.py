"""Live migration: check both hosts, prepare, move, settle by looking at both, clean up.

The guest runs on the source until QEMU's switch-over, then arrives *paused* on the destination
(``safe`` hand-over). The transaction of settle_destination that flips ``instances.host`` is the
commit point; only after it does the destination resume the guest.
"""

from contextlib import suppress
from typing import Any, NoReturn

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from innkeeper.errors import (
    GuestDied,
    InnkeeperError,
    MigrationAborted,
    OutcomeUnknown,
    from_wire,
)
from innkeeper.states import Handover, InstanceState, PowerState
from models import ledger
from models.claims import move_placement
from models.operation import Operation
from tasks import migration_network, migration_run
from tasks.admission import LIMIT_MIGRATIONS
from tasks.context import StepContext
from tasks.copied_pools import find_source_inode, list_copied_pools
from tasks.guest_pools import get_guest_pools
from tasks.instance_files import ensure_instance_dir_removed
from tasks.landing import ensure_landing_removed, find_inode
from tasks.migration_candidates import CHECK_CANDIDATE, check_candidate
from tasks.migration_choice import CHOOSE_DESTINATION, choose_destination
from tasks.migration_endings import (
    choose_next_destination,
    fail,
    give_up_unknown,
    set_phase,
    succeed,
)
from tasks.migration_look import (
    check_destination,
    check_source,
    remove_answer,
    remove_probe,
    survey_guest,
)
from tasks.migration_policy import policy_of
from tasks.reconcile import Look, Verdict, decide
from tasks.workflow import Done, On, RollForward, StepSpec, Workflow
from virt import sharing


def prepare_destination(context: StepContext) -> Done:
    """Make ready what must exist on the destination: directories, and the disks that are copied.

    Queue: host.<dst>; milliseconds, or as long as the base image takes to fetch.
    Idempotency: what is there already with the same base and size is kept.
    Undo: removes what the ledger names, never on shared storage.
    On crash: begun again.
    Retries: fetch_failed and libvirt out of reach.
    """
    return migration_run.prepare(context)


def unprepare_destination(context: StepContext) -> None:
    """Undo of prepare_destination: the incoming domain first, then the files that were made."""
    _remove_arrived(context)
    context.midway()
    if context.host.hypervisor.find_domain(context.instance.id) is not None:
        return
    if context.step.undo.get("console"):
        context.host.console_path(context.instance.id).unlink(missing_ok=True)
    ensure_landing_removed(context)


def migrate(context: StepContext) -> Done:
    """Move the guest, watch it, and look at the source afterwards.

    Queue: host.<src>; as long as the memory and the disks take.
    Idempotency: a job that runs already is adopted; a guest that has left is not sent again.
    Undo: resumes the guest if the migration left it paused.
    On crash: libvirtd goes on; the next attempt adopts the job.
    Retries: while libvirt is out of reach; its outcome is read from the hosts, not the exception.
    """
    done = migration_run.move(context)
    operation = context.operation

    def commit(session: Session) -> None:
        set_phase(session, operation, phase="settling")
        if done["src"]["has_left"]:
            set_committed(session, operation)

    return Done(done, commit)


def set_committed(session: Session, operation: Operation) -> None:
    """Pass the point of no return: the source has let go, so the destination's copy is the guest.

    From here on neither a cancel nor a deadline leads back.
    """
    session.execute(update(Operation).where(Operation.id == operation.id).values(is_committed=True))


def resume_source(context: StepContext) -> None:
    """Undo of migrate: stop a job that still runs, and resume a guest that it left paused.

    Raises:
        RollForward: the guest has left in the meantime, or is in post-copy; the way leads forward
            now.
    """
    view = context.host.hypervisor.find_domain(context.instance.id)
    if view is not None and view.is_in_post_copy:
        _go_on(context, migration_run.look_at_source(context))
    migration_run.ensure_no_job(context)
    context.midway()
    look = migration_run.look_at_source(context)
    if look.has_left:
        _go_on(context, look)
    if look.power_state == PowerState.PAUSED and (
        context.operation.state_before == InstanceState.ACTIVE
    ):
        context.host.hypervisor.ensure_resumed(context.instance.id)
    if not look.is_off:
        # The destination may have announced it already.
        migration_network.announce_guest(context)


def _go_on(context: StepContext, look: Look) -> NoReturn:
    operation = context.operation
    context.note("the guest had left before it could be held back: going on")
    raise RollForward(
        {"src": look.to_wire(), "error": None, "adopted": True},
        lambda session: set_committed(session, operation),
    )


def settle_destination(context: StepContext) -> Done:
    """Compare both hosts, commit the move, and resume the guest.

    Queue: host.<dst>; about 10 ms, and the guest is down during them.
    Idempotency: after the commit it only resumes.
    Undo: none; prepare_destination's removes the arrived copy, if the source still has the guest.
    On crash: before the commit both hosts are looked at again; after it the guest is resumed.
    Retries: an unclear outcome is looked at again, and never cleaned up.
    """
    source = context.details["migrate"]
    view = context.host.hypervisor.find_domain(context.instance.id)
    is_ours = view is not None and view.epoch == context.operation.epoch
    dst = Look(None)
    if view is not None and is_ours:
        dst = Look(view.power_state, bool(view.has_job), has_arrived=view.has_arrived)
    if context.instance.host != context.operation.dst_host:
        verdict = decide(Look.from_wire(source["src"]), dst)
        if verdict is Verdict.UNKNOWN:
            raise OutcomeUnknown(
                f"Source says {source['src']}, destination says {dst.to_wire()}.",
                {"src": source["src"], "dst": dst.to_wire()},
            )
        if verdict is Verdict.ROLL_BACK:
            raise _why_it_failed(context, Look.from_wire(source["src"]), source.get("error"))
        _commit(context)
    is_running = dst.power_state == PowerState.RUNNING
    network = {}
    if not dst.is_off:
        network = migration_network.secure_arrival(context, is_running=is_running)
    context.midway()
    was_resumed = dst.power_state == PowerState.PAUSED and (
        context.operation.state_before == InstanceState.ACTIVE
    )
    if was_resumed:
        context.host.hypervisor.ensure_resumed(context.instance.id)
    handover_ms = 0.0
    if policy_of(context.operation.params).handover is Handover.SAFE:
        handover_ms = context.database.run(lambda session: _handover_ms(session, context))
    if not dst.is_off:
        migration_network.announce_guest(context)
    with suppress(OSError):
        for pool in get_guest_pools(context):
            sharing.remove_probe(pool.path, context.operation.id)
            sharing.remove_answer(pool.path, context.operation.id)
    libvirt_downtime_ms = source.get("downtime_ms")
    detail: dict[str, Any] = {"handover_ms": handover_ms, "downtime_ms": None, "is_off": dst.is_off}
    if libvirt_downtime_ms is None and not dst.is_off:
        # The source's last event was lost; the destination has the same figures.
        kept = context.host.hypervisor.get_completed_stats(context.instance.id)
        if kept is not None:
            detail["stats"] = kept.to_json()
            libvirt_downtime_ms = kept.downtime_ms
    detail |= network
    if was_resumed and source.get("standstill_ms") is not None:
        detail["standstill_ms"] = round(float(source["standstill_ms"]) + handover_ms, 1)
    if libvirt_downtime_ms is not None:
        detail["downtime_ms"] = round(float(libvirt_downtime_ms) + handover_ms, 1)
    return Done(detail)


def _commit(context: StepContext) -> None:
    """The commit point: from here on the guest is the destination's."""
    operation, instance = context.operation, context.instance

    def commit(session: Session) -> None:
        ledger.assert_owned(session, context.step.key)
        move_placement(
            session,
            instance_id=instance.id,
            src=str(operation.src_host),
            dst=str(operation.dst_host),
            domain_epoch=operation.epoch,
        )
        set_committed(session, operation)
        set_phase(session, operation, phase="committed")

    context.database.run(commit)
    operation.is_committed = True


def _handover_ms(session: Session, context: StepContext) -> float:
    """Return the ms since the source let go, by the database's clock alone: the guest stood still.

    With the hand-over ``fast`` it did not.
    """
    return float(
        session.execute(
            text(
                "SELECT round((EXTRACT(EPOCH FROM clock_timestamp() - finished_at) * 1000)"
                "::numeric, 1) FROM steps WHERE operation_id = :o AND name = 'migrate' "
                "AND state = 'done' ORDER BY position DESC LIMIT 1"
            ),
            {"o": context.operation.id},
        ).scalar_one()
    )


def _why_it_failed(context: StepContext, src: Look, error: dict[str, Any] | None) -> InnkeeperError:
    if src.is_off and context.operation.state_before == InstanceState.ACTIVE:
        return GuestDied(
            f"{context.instance.name} died on {context.operation.src_host} while it was moved.",
            {"host": context.operation.src_host, "step": "migrate"},
        )
    src_host = context.operation.src_host
    said = "libvirt or the worker there was away."
    if error is not None:
        told = from_wire(error)
        if not isinstance(told, OutcomeUnknown):
            return told
        # Now that both hosts have been looked at, it is known.
        said = told.message
    return MigrationAborted(
        f"The migration of {context.instance.name} broke off, and the guest stays on {src_host}: "
        f"{said}",
        {"host": src_host, "step": "migrate"},
    )


def _remove_arrived(context: StepContext) -> None:
    """Remove an arrived copy; the ledger and the copy's epoch prove that it is this migration's."""
    hypervisor = context.host.hypervisor
    view = hypervisor.find_domain(context.instance.id)
    if view is not None and view.epoch == context.operation.epoch:
        hypervisor.ensure_destroyed(context.instance.id)
        hypervisor.ensure_undefined(context.instance.id)


def finish_source(context: StepContext) -> Done:
    """Remove what the guest left behind on the source.

    Queue: host.<src>; milliseconds, a second or so when the copy must be destroyed.
    Idempotency: removes what may be gone already; a copy of the current epoch is never touched.
    Undo: none, the move is committed.
    On crash: begun again.
    Retries: best effort.
    """
    hypervisor, instance = context.host.hypervisor, context.instance
    view = hypervisor.find_domain(instance.id)
    removed_copy = False
    if view is not None and view.epoch is not None and view.epoch < context.operation.epoch:
        hypervisor.ensure_destroyed(instance.id)
        hypervisor.ensure_undefined(instance.id)
        removed_copy = True
    context.midway()
    for pool in list_copied_pools(context):
        # A mount that came meanwhile would show the guest's disks in the place of the old ones.
        inode = find_inode(pool.instance_dir(instance.id))
        if inode == find_source_inode(context, pool):
            ensure_instance_dir_removed(pool, instance.id)
    context.host.console_path(instance.id).unlink(missing_ok=True)
    return Done({"removed_copy": removed_copy})


LIVE_MIGRATE = Workflow(
    kind="live_migrate",
    steps=(
        StepSpec("survey_guest", On.SRC, survey_guest, is_harmless=True),
        # These two are planned by the request, where there are several to choose from.
        StepSpec(
            CHECK_CANDIDATE,
            On.DST,
            check_candidate,
            is_harmless=True,
            may_be_passed_over=True,
            wanted_by=lambda _spec: False,
        ),
        StepSpec(
            CHOOSE_DESTINATION,
            On.SRC,
            choose_destination,
            is_harmless=True,
            wanted_by=lambda _spec: False,
        ),
        StepSpec(
            "check_destination",
            On.DST,
            check_destination,
            undo=remove_probe,
            intends=True,
            cleans_up_only=True,
        ),
        StepSpec(
            "check_source",
            On.SRC,
            check_source,
            undo=remove_answer,
            intends=True,
            is_harmless=True,
            cleans_up_only=True,
        ),
        StepSpec(
            "prepare_destination",
            On.DST,
            prepare_destination,
            undo=unprepare_destination,
            intends=True,
            cleans_up_only=True,
        ),
        StepSpec(
            "migrate",
            On.SRC,
            migrate,
            undo=resume_source,
            admit=LIMIT_MIGRATIONS,
            max_failures=100,
        ),
        StepSpec(
            "settle_destination", On.DST, settle_destination, max_failures=100, renews="migrate"
        ),
        StepSpec("finish_source", On.SRC, finish_source, best_effort=True, cleans_up_only=True),
    ),
    on_success=succeed,
    on_failure=fail,
    on_unknown=give_up_unknown,
    replan=choose_next_destination,
)
