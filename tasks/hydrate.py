"""Hydrate: make a guest independent of the source it was booted from, or give it up.

Such a guest runs on ``root.instant.qcow2``, an overlay over a raw image on a server. Its image is
fetched and verified meanwhile; then its overlay is copied into ``root.qcow2``, which stands on the
cached image, and the guest goes on with that one. From then on it is like any other guest.
"""

from typing import Any

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from innkeeper.errors import FetchFailed, ImageError, InnkeeperError, SourceLost, from_wire
from innkeeper.states import Effect, InstanceState, PowerState
from models.instance import Instance
from models.operation import Operation
from models.queries import record_event, view_settled
from models.remote_disks import Wanted, condemn, find_remote_disk, lease_base
from tasks import hydrate_pivot
from tasks.base_image import fetch_base, record_base
from tasks.context import StepContext
from tasks.power_verbs import get_current_domain
from tasks.unsettled import mark_unknown
from tasks.workflow import Done, On, StepSpec, Workflow

GIVES_UP = "given_up"


def verify_base(context: StepContext) -> Done:
    """Have the verified image in the cache; cut the guest's power if it ran on other bytes.

    Queue: host.<host>; milliseconds when the image is there, else as long as its transfer.
    Idempotency: the cache is addressed by digest; a guest without a power to cut is fine.
    Undo: none; a cached image ages by itself, and a guest is not given up by halves.
    On crash: begun again.
    Retries: fetch_failed; never bytes that were not promised, nor a source that may not be awaited.
    """
    instance_id = context.instance.id
    disk = context.database.run(lambda session: find_remote_disk(session, instance_id))
    if disk is None:
        context.midway()
        return Done({"is_remote": False})
    if disk.condemned is not None:
        raise _give_up(context, from_wire(disk.condemned))
    wanted = disk.wanted_on(context.host.name)
    try:
        image = fetch_base(context, context.pool, wanted, check=context.checkpoint)
    except FetchFailed as error:
        # Committed: an attempt before this one had begun to give it up.
        is_lost = context.operation.is_committed or get_current_domain(context).waits_for_disk
        if disk.source_lost == "fail" and is_lost:
            raise _give_up(context, lost_error(disk.name, disk.url)) from error
        raise
    except ImageError as error:
        _condemn(context, wanted, error)
        raise _give_up(context, error) from error
    context.midway()

    def commit(session: Session) -> None:
        record_base(session, image, wanted)
        session.execute(
            update(Instance).where(Instance.id == instance_id).values(image_sha256=image.digest)
        )
        lease_base(session, instance_id, image.digest)

    return Done(
        {
            "is_remote": True,
            "target": disk.target,
            "path": str(image.path),
            "sha256": image.digest,
        },
        commit,
    )


def _condemn(context: StepContext, wanted: Wanted, error: ImageError) -> None:
    """Write the verdict first: a later attempt must not depend on the source to find it again."""
    wire = error.to_wire()
    context.database.run(lambda session: condemn(session, wanted, wire))


def lost_error(name: str, url: str) -> SourceLost:
    """Return the error of a guest whose source does not deliver."""
    return SourceLost(
        f"The source {url} does not deliver, and {name} still reads its disk from there.",
        {"url": url},
    )


def _give_up(context: StepContext, error: InnkeeperError) -> InnkeeperError:
    """Cut the guest's power, and return what to raise."""
    get_current_domain(context)
    context.go_through()
    context.host.hypervisor.ensure_destroyed(context.instance.id)
    context.midway()
    details = {**error.details, "effect": Effect.DONE.value, GIVES_UP: True}
    return type(error)(error.message, details)


def pivot_disk(context: StepContext) -> Done:
    """Let the guest go on with an overlay over the cached image.

    Queue: host.<host>; as long as a copy of what the guest has written takes, a tenth of a second
        for a fresh one.
    Idempotency: looks first at the file that the domain uses, and at a copy that is under way.
    Undo: ends the copying and removes the copy; goes on when the guest uses it already.
    On crash: libvirt goes on copying; the next attempt adopts the copy.
    Retries: while libvirt is out of reach.
    """
    return hydrate_pivot.pivot(context)


def unpivot_disk(context: StepContext) -> None:
    """Undo of pivot_disk.

    Raises:
        RollForward: the guest uses the new file already.
    """
    hydrate_pivot.unpivot(context)


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    if (instance.fault or {}).get("code") == SourceLost.code:
        instance.fault = None
    record_event(
        session,
        "instance.hydrated",
        instance_id=instance.id,
        operation_id=operation.id,
        host=operation.dst_host,
    )
    return view_settled(session, instance, operation)


def _fail(session: Session, operation: Operation) -> None:
    """Keep the guest as it is, unless it was given up."""
    error = operation.error or {}
    if not (error.get("details") or {}).get(GIVES_UP):
        return
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    instance.state, instance.power_state = InstanceState.ERROR, PowerState.SHUTDOWN
    instance.power_observed_at = func.clock_timestamp()
    instance.fault = error
    record_event(
        session,
        "instance.given_up",
        instance_id=instance.id,
        operation_id=operation.id,
        host=operation.dst_host,
        data={"code": error.get("code")},
    )


HYDRATE = Workflow(
    kind="hydrate",
    steps=(
        StepSpec("verify_base", On.DST, verify_base),
        StepSpec("pivot_disk", On.DST, pivot_disk, undo=unpivot_disk, max_failures=100),
    ),
    on_success=_succeed,
    on_failure=_fail,
    on_unknown=mark_unknown,
    may_fail_late=True,
)
