"""Delete: destroy the domain, remove the files the guest's records name, give the claim back."""

from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func
from sqlalchemy.orm import Session

from innkeeper.errors import StaleDomain
from innkeeper.states import InstanceState, PowerState
from models.disks import forget_disks
from models.host import Claim
from models.instance import Instance
from models.operation import Operation
from models.queries import view_settled
from tasks.context import StepContext
from tasks.guest_pools import get_guest_pools
from tasks.instance_files import ensure_instance_dir_removed
from tasks.unsettled import keep_state, mark_unknown
from tasks.workflow import Done, On, StepSpec, Workflow


def destroy_domain(context: StepContext) -> Done:
    """Cut the guest's power and undefine its domain.

    Queue: host.<host>; about 0.2 s.
    Idempotency: a domain that is off or gone already is fine.
    Undo: none; deleting is not taken back.
    On crash: begun again.
    Retries: while libvirt is out of reach.
    """
    hypervisor = context.host.hypervisor
    view = hypervisor.find_domain(context.instance.id)
    if view is None:
        context.go_through()
        return Done({"found": False})
    if view.epoch != context.instance.domain_epoch:
        raise StaleDomain(
            f"The domain on {context.host.name} is of epoch {view.epoch}, the record of "
            f"{context.instance.domain_epoch}; it is not touched.",
            {"domain_epoch": view.epoch, "record_epoch": context.instance.domain_epoch},
        )
    context.go_through()
    hypervisor.ensure_destroyed(context.instance.id)
    context.midway()
    hypervisor.ensure_undefined(context.instance.id)
    return Done({"found": True})


def remove_files(context: StepContext) -> Done:
    """Remove the guest's directories and console log.

    Queue: host.<host>; milliseconds.
    Idempotency: what is gone is gone.
    Undo: none.
    On crash: begun again.
    Retries: all failures, with back-off; then the guest counts as deleted, and what is left of its
        files is tried on as owed.
    """
    pools = get_guest_pools(context)
    ensure_instance_dir_removed(pools[0], context.instance.id)
    context.midway()
    for pool in pools[1:]:
        ensure_instance_dir_removed(pool, context.instance.id)
    context.host.console_path(context.instance.id).unlink(missing_ok=True)
    return Done()


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    session.execute(sql_delete(Claim).where(Claim.instance_id == instance.id))
    forget_disks(session, instance.id)
    instance.state = InstanceState.DELETED
    instance.power_state = PowerState.NOSTATE
    instance.deleted_at = func.clock_timestamp()
    return view_settled(session, instance, operation)


DELETE = Workflow(
    kind="delete",
    steps=(
        StepSpec("destroy_domain", On.DST, destroy_domain),
        StepSpec("remove_files", On.DST, remove_files, best_effort=True),
    ),
    on_success=_succeed,
    on_failure=keep_state,
    on_unknown=mark_unknown,
)
