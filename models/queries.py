"""Every read that people and services see, as the contract's views."""

from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from innkeeper.addresses import show_address
from innkeeper.errors import NotFound
from innkeeper.states import LIVE_OPERATION_STATES, InstanceState, StepState
from innkeeper.types import (
    CardView,
    DiskView,
    HostView,
    InstanceView,
    MigrationView,
    OperationView,
    PartView,
    Progress,
    StepView,
)
from models.claims import list_host_snapshots
from models.event import Event
from models.host import Host
from models.instance import Instance
from models.operation import Migration, Operation, Step
from models.operations import find_real_id, get_instance_by_reference

_GIVEN_BACK = (StepState.QUEUED, StepState.UNDO)
_CURRENT = (StepState.RUNNING, StepState.UNDOING, StepState.QUEUED, StepState.UNDO)


def view_instance(
    session: Session, instance: Instance, disks: list[DiskView] | None = None
) -> InstanceView:
    """Return a guest's record; ``task`` is derived from the operation that holds it.

    Args:
        session: an open transaction.
        instance: the guest.
        disks: its disks, where they were read already.
    """
    if disks is None:
        disks = _disks_of(session, [instance.id]).get(instance.id, [])
    return _view(instance, disks, *_find_task(session, instance.operation_id))


def _find_task(session: Session, operation_id: UUID | None) -> tuple[str | None, str | None]:
    """Return what the operation that holds a guest is at, and what it waits for."""
    operation = None if operation_id is None else session.get(Operation, operation_id)
    if operation is None:
        return None, None
    step = operation.progress.get("step")
    waiting_for = session.scalar(
        select(Step.waiting_for).where(
            Step.operation_id == operation.id,
            Step.waiting_for.is_not(None),
            Step.state.in_(_GIVEN_BACK),
        )
    )
    return f"{operation.kind}: {step}" if step else operation.kind, waiting_for


def _view(
    instance: Instance, disks: list[DiskView], task: str | None, waiting_for: str | None
) -> InstanceView:
    abi = instance.guest_abi
    return InstanceView(
        id=instance.id,
        name=instance.name,
        state=instance.state,
        power_state=instance.power_state,
        power_observed_at=instance.power_observed_at,
        host=instance.host,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        disk_gib=instance.disk_gib,
        pool=instance.pool,
        image=show_address(str(instance.spec.get("image", ""))),
        epoch=instance.epoch,
        operation_id=instance.operation_id,
        task=task,
        waiting_for=waiting_for,
        boot_stage=instance.boot_stage,
        group=instance.group_name,
        metadata=instance.spec.get("metadata") or {},
        disks=disks,
        network_cards=_cards_of(instance),
        machine=abi.get("machine"),
        cpu_model=abi.get("cpu"),
        firmware=(instance.spec.get("hardware") or {}).get("firmware", "bios"),
        created_at=instance.created_at,
        updated_at=instance.updated_at,
    )


_SHOWN_OF_DISK = ("target", "kind", "bus", "format", "size_bytes", "serial", "pool")
_DISKS_OF = text(
    """
    SELECT d.instance_id, d.remote_url IS NOT NULL, d.target, d.kind, d.bus, d.format,
           d.size_bytes, d.serial, COALESCE(d.pool, i.pool)
      FROM disks d JOIN instances i ON i.id = d.instance_id
     WHERE d.instance_id = ANY(CAST(:instance_ids AS uuid[]))
     ORDER BY d.instance_id, d.kind <> 'root', d.target
    """
)


def _disks_of(session: Session, instance_ids: list[UUID]) -> dict[UUID, list[DiskView]]:
    found: dict[UUID, list[DiskView]] = {}
    for row in session.execute(_DISKS_OF, {"instance_ids": instance_ids}):
        instance_id, is_remote, *shown = row
        fields = dict(zip(_SHOWN_OF_DISK, shown, strict=True))
        found.setdefault(instance_id, []).append(DiskView(is_remote=is_remote, **fields))
    return found


def _cards_of(instance: Instance) -> list[CardView]:
    """Return the cards of the spec, ``bridge`` being short for the first, with what is frozen."""
    spec = instance.spec
    cards = [{"bridge": spec["bridge"]}] if spec.get("bridge") else []
    cards += spec.get("network_cards") or []
    frozen = instance.guest_abi.get("nics") or [{} for _ in cards]
    return [
        CardView(
            bridge=card["bridge"],
            mac=abi.get("mac") or card.get("mac"),
            model=card.get("model") or "virtio",
            addresses=card.get("addresses") or [],
        )
        for card, abi in zip(cards, frozen, strict=False)
    ]


def view_settled(session: Session, instance: Instance, operation: Operation) -> dict[str, Any]:
    """Return a guest as the result of the operation that is ending with this transaction."""
    session.flush()
    disks = _disks_of(session, [instance.id]).get(instance.id, [])
    view = _view(instance, disks, None, None).model_dump(mode="json")
    return {**view, "operation_id": str(operation.id)}


def show_instance(session: Session, reference: str) -> InstanceView:
    """Return one guest by UUID or living name.

    Raises:
        NotFound: when there is none.
    """
    return view_instance(session, get_instance_by_reference(session, reference))


def list_instances(session: Session) -> list[InstanceView]:
    """Return the living guests by name."""
    instances = session.scalars(
        select(Instance).where(Instance.state != InstanceState.DELETED).order_by(Instance.name)
    ).all()
    disks = _disks_of(session, [instance.id for instance in instances])
    return [view_instance(session, each, disks.get(each.id, [])) for each in instances]


def list_hosts(session: Session) -> list[HostView]:
    """Return every host with what is claimed on it, by name."""
    rows = {host.name: host for host in session.scalars(select(Host))}
    return [
        HostView(
            name=snapshot.name,
            uuid=rows[snapshot.name].uuid,
            is_up=snapshot.is_up,
            is_enabled=snapshot.is_enabled,
            disabled_reason=snapshot.disabled_reason,
            disabled_by=rows[snapshot.name].disabled_by,
            heartbeat_at=rows[snapshot.name].heartbeat_at,
            fenced_at=rows[snapshot.name].fenced_at,
            libvirt_version=rows[snapshot.name].libvirt_version,
            qemu_version=rows[snapshot.name].qemu_version,
            cpu_model=rows[snapshot.name].cpu_model,
            vcpus_total=snapshot.vcpus_total,
            vcpus_claimed=snapshot.vcpus_claimed,
            memory_total_mib=snapshot.memory_total_mib,
            memory_claimed_mib=snapshot.memory_claimed_mib,
            disk_total_gib=snapshot.disk_total_gib,
            disk_claimed_gib=snapshot.disk_claimed_gib,
            instances=snapshot.instances,
        )
        for snapshot in list_host_snapshots(session)
        if snapshot.name in rows
    ]


def view_step(step: Step) -> StepView:
    """Return one ledger entry."""
    elapsed_ms = None
    if step.started_at and step.finished_at:
        elapsed_ms = round((step.finished_at - step.started_at).total_seconds() * 1000, 1)
    return StepView(
        position=step.position,
        name=step.name,
        host=step.host,
        state=step.state.value,
        attempt=step.attempt,
        started_at=step.started_at,
        finished_at=step.finished_at,
        elapsed_ms=elapsed_ms,
        detail=step.detail,
        error=step.error,
        waiting_for=step.waiting_for if step.state in _GIVEN_BACK else None,
        waiting_since=step.waiting_since,
        log=step.log,
    )


def view_operation(
    operation: Operation, steps: list[Step], instance_name: str | None
) -> OperationView:
    """Return an operation with its timeline."""
    fraction = 1.0 if operation.result is not None else _fraction(operation, steps)
    current = next((s.name for s in steps if s.state in _CURRENT), None)
    return OperationView(
        id=operation.id,
        kind=operation.kind,
        state=operation.state,
        instance_id=operation.instance_id,
        instance_name=instance_name,
        src_host=operation.src_host,
        dst_host=operation.dst_host,
        requested_by=operation.requested_by,
        reason=operation.reason,
        parent_id=operation.parent_id,
        cancel_requested=operation.cancel_requested,
        progress=Progress(
            step=current or operation.progress.get("step"),
            fraction=fraction,
            text=_progress_text(operation, steps),
            figures=operation.progress.get("figures") or {},
        ),
        refusals=operation.refusals,
        result=operation.result,
        error=operation.error,
        created_at=operation.created_at,
        started_at=operation.started_at,
        finished_at=operation.finished_at,
        deadline_at=operation.deadline_at,
        owes_since=operation.owes_since,
        steps=[view_step(step) for step in steps],
    )


def _progress_text(operation: Operation, steps: list[Step]) -> str:
    """Return what the step in hand says, or what it waits for before it has anything to say."""
    text = str(operation.progress.get("text", ""))
    current = next((s for s in steps if s.state in _CURRENT), None)
    if current is None or current.waiting_for is None:
        return text
    has_spoken = operation.progress.get("step") == current.name
    return text if has_spoken and text else f"waiting for {current.waiting_for}"


def _fraction(operation: Operation, steps: list[Step]) -> float:
    """Count done steps, and the running one by its own fraction."""
    if not steps:
        return 0.0
    done = sum(s.state in (StepState.DONE, StepState.UNDONE) for s in steps)
    # One that was given back to wait has kept what it had reached.
    running = next((s for s in steps if s.state in (StepState.RUNNING, StepState.QUEUED)), None)
    part = 0.0
    if running is not None and operation.progress.get("step") == running.name:
        part = float(operation.progress.get("fraction", 0.0))
    return round(min(1.0, (done + min(max(part, 0.0), 1.0)) / len(steps)), 4)


def show_operation(session: Session, operation_id: UUID) -> OperationView:
    """Return one operation with its timeline.

    Raises:
        NotFound: when there is none.
    """
    operation = session.get(Operation, find_real_id(session, operation_id))
    if operation is None:
        raise NotFound(
            f"There is no operation {operation_id}.",
            {"what": "operation", "name": str(operation_id)},
        )
    steps = session.scalars(
        select(Step).where(Step.operation_id == operation.id).order_by(Step.position)
    ).all()
    name = session.scalar(select(Instance.name).where(Instance.id == operation.instance_id))
    view = view_operation(operation, list(steps), name)
    if operation.instance_id is not None:
        migration = session.get(Migration, operation.id, populate_existing=True)
        if migration is None:
            return view
        return view.model_copy(update={"migration": view_migration(operation, migration)})
    return view.model_copy(update={"parts": _list_parts(session, operation.id)})


def _list_parts(session: Session, operation_id: UUID) -> list[PartView]:
    """Return the operations that are parts of one, in the order in which they were asked for."""
    rows = session.execute(
        select(Operation, Instance.name)
        .outerjoin(Instance, Instance.id == Operation.instance_id)
        .where(Operation.parent_id == operation_id)
        .order_by(Operation.created_at, Operation.id)
    ).all()
    steps: dict[UUID, list[Step]] = {}
    for step in session.scalars(
        select(Step)
        .where(Step.operation_id.in_([part.id for part, _ in rows if not part.state.is_final]))
        .order_by(Step.position)
    ):
        steps.setdefault(step.operation_id, []).append(step)
    return [
        PartView(
            operation_id=part.id,
            kind=part.kind,
            state=part.state,
            instance_name=name,
            dst_host=part.dst_host,
            fraction=1.0 if part.state.is_final else _fraction(part, steps.get(part.id, [])),
            text="" if part.state.is_final else _progress_text(part, steps.get(part.id, [])),
            started_at=part.started_at,
            finished_at=part.finished_at,
            error=part.error,
        )
        for part, name in rows
    ]


def view_migration(operation: Operation, migration: Migration) -> MigrationView:
    """Return a migration's facts, with the policy in force and where each value came from."""
    origins = operation.params.get("policy_from") or {}
    policy = operation.params.get("policy") or {}
    return MigrationView(
        phase=migration.phase,
        outcome=migration.outcome,
        storage=migration.storage,
        policy={
            name: {"value": value, "from": origins.get(name, "request")}
            for name, value in policy.items()
        },
        force_complete_requested=operation.force_complete_by is not None,
        forecast=migration.forecast,
        decisions=migration.decisions,
        total_ms=migration.total_ms,
        downtime_ms=migration.downtime_ms,
        stats=migration.stats,
    )


def list_operations(
    session: Session, *, active: bool, limit: int, instance: str | None
) -> list[OperationView]:
    """Return operations, newest first, each with its timeline.

    Args:
        session: an open transaction.
        active: only those that have not ended.
        limit: 1…1000.
        instance: only those of this guest, by UUID or living name.
    """
    query = (
        select(Operation, Instance.name)
        .outerjoin(Instance, Instance.id == Operation.instance_id)
        .order_by(Operation.created_at.desc())
        .limit(max(1, min(limit, 1000)))
    )
    if active:
        query = query.where(Operation.state.in_(LIVE_OPERATION_STATES))
    if instance is not None:
        query = query.where(
            Operation.instance_id == get_instance_by_reference(session, instance).id
        )
    rows = session.execute(query).all()
    steps: dict[UUID, list[Step]] = {}
    for step in session.scalars(
        select(Step)
        .where(Step.operation_id.in_([operation.id for operation, _ in rows]))
        .order_by(Step.position)
    ):
        steps.setdefault(step.operation_id, []).append(step)
    return [view_operation(op, steps.get(op.id, []), name) for op, name in rows]


def record_event(
    session: Session,
    kind: str,
    *,
    instance_id: UUID | None = None,
    operation_id: UUID | None = None,
    host: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Write that something happened that no state shows: what states do is told by triggers."""
    session.add(
        Event(
            kind=kind,
            instance_id=instance_id,
            operation_id=operation_id,
            host=host,
            data=data or {},
        )
    )


def find_schema_revision(session: Session) -> str | None:
    """Return the alembic revision that the database is at."""
    return session.execute(text("SELECT version_num FROM alembic_version")).scalar()
