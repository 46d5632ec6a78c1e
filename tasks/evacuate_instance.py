"""One guest of a dead host: its files are found on another host, it is taken over, and started.

The transaction that records define_elsewhere is the commit point: from then on the guest is the
other host's, and a copy on the dead one is stale by its epoch. Only after it the guest is started.
A worker that dies in between leaves the guest down, never doubled.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from innkeeper.errors import HostFenced, HostUnsuitable, NetworkNotReady, StaleDomain, StartFailed
from innkeeper.states import Effect, InstanceState, PowerState
from innkeeper.types import InstanceSpec
from models.claims import move_placement, release_claim
from models.fencing import Evacuation, require_absent
from models.instance import Instance
from models.operation import Operation
from models.queries import view_settled
from tasks.config_drive import FILE
from tasks.context import Pool, StepContext
from tasks.direct_boot import describe_kernel
from tasks.evacuation_choice import KIND
from tasks.guest_abi import GuestAbi, require_offered
from tasks.guest_data import wants_drive
from tasks.guest_disks import get_config_drives, get_guest_disks
from tasks.guest_domain import NVRAM_FILE, describe_domain
from tasks.guest_pools import get_guest_pools, pool_of
from tasks.guest_start import start_verified
from tasks.next_host import choose_next_host
from tasks.unsettled import mark_unknown
from tasks.workflow import Done, On, StepSpec, Workflow
from virt import sharing
from virt.domain_xml import digest_xml, render_domain
from virt.network import require_bridges


def find_files(context: StepContext) -> Done:
    """Look whether this host sees the very files that the dead host wrote.

    Queue: host.<dst>; milliseconds.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again.
    Retries: none; another host may see what this one does not.
    """
    instance, host = context.instance, context.host.name
    pools = {pool.name: pool for pool in get_guest_pools(context)}
    for pool in pools.values():
        _require_same(context, pool)
    context.midway()
    own = context.pool
    directory = own.instance_dir(instance.id)
    disks = get_guest_disks(context)
    wanted = [
        pools[pool_of(instance, disk)].instance_dir(instance.id) / disk.file for disk in disks
    ]
    wanted += [
        own.images.path_for(disk.backing_sha256, disk.backing_format or "qcow2")
        for disk in disks
        if disk.backing_sha256 is not None
    ]
    if wants_drive(instance.spec):
        wanted.append(directory / FILE)
    if _abi_of(instance).uefi_code_path is not None:
        wanted.append(directory / NVRAM_FILE)
    missing = sorted(_tell_place(path, pools.values()) for path in wanted if not path.is_file())
    if missing or not disks:
        raise HostUnsuitable(
            f"Host {host} does not see all files of {instance.name}: "
            f"{', '.join(missing) or 'there is no disk'}.",
            {"host": host, "missing": missing, "hint": "A guest without its disks is not started."},
        )
    return Done({"files": len(wanted)})


def _require_same(context: StepContext, pool: Pool) -> None:
    """Refuse a pool that is not the very directory which the dead host had under its name."""
    operation, host = context.operation, context.host.name
    # An earlier release told of the one pool that a guest had.
    known = operation.params.get("pool_ids") or {
        context.instance.pool: operation.params.get("pool_id")
    }
    wanted = known.get(pool.name)
    if wanted is None or not pool.shared or sharing.find_pool_id(pool.path) != wanted:
        raise HostUnsuitable(
            f"Pool {pool.name!r} of {host} is not the directory that {operation.src_host} has under"
            " that name.",
            {"host": host, "pool": pool.name},
        )


def _tell_place(path: Path, pools: Iterable[Pool]) -> str:
    return next(
        str(path.relative_to(pool.path)) for pool in pools if path.is_relative_to(pool.path)
    )


def define_elsewhere(context: StepContext) -> Done:
    """Define the guest on its new host, and take it over: the commit point.

    Queue: host.<dst>; about 10 ms.
    Idempotency: defining the same XML again changes nothing; after the commit it is not repeated.
    Undo: undefines the domain, if it is this operation's and the guest was not taken over.
    On crash: begun again.
    Retries: while libvirt is out of reach; the next host when this one refuses the machine.
    """
    host, instance, operation = context.host, context.instance, context.operation
    view = host.hypervisor.find_domain(instance.id)
    if view is not None and view.epoch != operation.epoch:
        raise StaleDomain(
            f"Host {host.name} has a domain of this guest from epoch {view.epoch}.",
            {"domain_epoch": view.epoch, "record_epoch": instance.domain_epoch},
        )
    xml = _render(context)
    require_bridges(xml, host=host.name)
    context.intend(domain=str(instance.id), epoch=operation.epoch)
    host.console_dir.mkdir(parents=True, exist_ok=True)
    context.midway()
    host.hypervisor.define(xml)

    def commit(session: Session) -> None:
        fencing_id = UUID(operation.params["fencing_id"])
        src, dst = str(operation.src_host), str(operation.dst_host)
        require_absent(session, fencing_id, src)
        move_placement(
            session, instance_id=instance.id, src=src, dst=dst, domain_epoch=operation.epoch
        )
        session.execute(
            update(Instance)
            .where(Instance.id == instance.id)
            .values(
                domain_xml=xml,
                domain_xml_sha256=digest_xml(xml),
                power_state=PowerState.SHUTDOWN,
                power_observed_at=func.clock_timestamp(),
            )
        )
        session.add(
            Evacuation(
                operation_id=operation.id,
                fencing_id=fencing_id,
                instance_id=instance.id,
                src_host=src,
                dst_host=dst,
                domain_epoch=operation.epoch,
            )
        )
        session.execute(
            update(Operation).where(Operation.id == operation.id).values(is_committed=True)
        )

    return Done({"machine": instance.guest_abi.get("machine")}, commit)


def undefine_elsewhere(context: StepContext) -> None:
    """Undo of define_elsewhere: a guest that was taken over keeps its domain."""
    if context.operation.is_committed:
        return
    hypervisor = context.host.hypervisor
    view = hypervisor.find_domain(context.instance.id)
    context.midway()
    if view is not None and view.epoch == context.operation.epoch:
        hypervisor.ensure_undefined(context.instance.id)


def start_elsewhere(context: StepContext) -> Done:
    """Start the guest, if it ran when its host died.

    Queue: host.<dst>; a quarter of a second, at most 20 s for a network that is late.
    Idempotency: a running domain is left alone.
    Undo: none; a guest that cannot be started is off on its new host.
    On crash: begun again; what was left paused by this step is verified and let run.
    Retries: while libvirt is out of reach.
    """
    if context.operation.state_before != InstanceState.ACTIVE:
        context.midway()
        return Done({"started": False})
    try:
        return Done({"started": True, **start_verified(context)})
    except (StartFailed, NetworkNotReady) as exc:
        context.host.hypervisor.ensure_destroyed(context.instance.id)
        raise exc.with_details(
            effect=Effect.DONE,
            hint=f"It is on {context.host.name} now, and off: innkeeper start "
            f"{context.instance.name}",
        ) from exc


def _render(context: StepContext) -> str:
    """Describe the guest anew for this host's paths, as it was frozen when it first booted."""
    instance = context.instance
    spec, abi = InstanceSpec.model_validate(instance.spec), _abi_of(instance)
    require_offered(context.host.hypervisor, spec, abi)
    disks = get_guest_disks(context)
    return render_domain(
        describe_domain(
            context.host,
            instance,
            operation=context.operation,
            abi=abi,
            disks=disks,
            cdroms=get_config_drives(context),
            kernel=describe_kernel(context.pool, spec, disks[0]),
        )
    )


def _abi_of(instance: Instance) -> GuestAbi:
    spec = InstanceSpec.model_validate(instance.spec)
    return GuestAbi.from_row(instance.guest_abi, instance.id, spec)


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    was_active = operation.state_before == InstanceState.ACTIVE
    if was_active:
        instance.state, instance.power_state = InstanceState.ACTIVE, PowerState.RUNNING
    else:
        _settle_off(instance, operation)
    instance.power_observed_at = func.clock_timestamp()
    return {
        **view_settled(session, instance, operation),
        "src": operation.src_host,
        "dst": operation.dst_host,
    }


def _fail(session: Session, operation: Operation) -> None:
    """Before the commit nothing has changed; after it the guest is off on its new host."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    has_lost_host = (operation.error or {}).get("code") == HostFenced.code
    if operation.is_committed and has_lost_host:
        # The new host has died as well: the guest is evacuated from there as what it was.
        instance.state = InstanceState(str(operation.state_before))
    elif operation.is_committed:
        _settle_off(instance, operation)
    elif operation.dst_host is not None:
        release_claim(session, host=operation.dst_host, instance_id=instance.id)


def _settle_off(instance: Instance, operation: Operation) -> None:
    # A paused guest's memory is lost with its host; what its owner held still is not let run.
    if operation.state_before != InstanceState.ERROR:
        instance.state = InstanceState.STOPPED
    instance.power_state = PowerState.SHUTDOWN


def _choose_next_host(session: Session, operation: Operation) -> bool:
    if operation.is_committed:
        return False
    dst = choose_next_host(
        session, operation, is_pinned=False, leaves=operation.src_host, may_split_group=True
    )
    session.flush()
    return dst is not None


EVACUATE_INSTANCE = Workflow(
    kind=KIND,
    steps=(
        StepSpec("find_files", On.DST, find_files, is_harmless=True),
        StepSpec(
            "define_elsewhere",
            On.DST,
            define_elsewhere,
            undo=undefine_elsewhere,
            intends=True,
            cleans_up_only=True,
        ),
        StepSpec("start_elsewhere", On.DST, start_elsewhere),
    ),
    on_success=_succeed,
    on_failure=_fail,
    on_unknown=mark_unknown,
    replan=_choose_next_host,
    may_fail_late=True,
    waits_for_host=False,
)
