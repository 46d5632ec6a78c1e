"""Spawn: the image, the disks, the config drive, the domain; start it, see it boot."""

from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from innkeeper.states import BootStage, InstanceState, PowerState
from models.claims import release_claim
from models.disks import forget_disks
from models.event import Event
from models.instance import Instance
from models.operation import Operation, Step
from models.queries import view_settled
from tasks.admission import LIMIT_BUILDS
from tasks.guest_data import wants_agent_files, wants_drive
from tasks.next_host import choose_next_host
from tasks.spawn_steps.agent_files import inject_files
from tasks.spawn_steps.boot import is_watched, wait_boot
from tasks.spawn_steps.config_drive import build_config_drive
from tasks.spawn_steps.disks import create_disks, remove_disks
from tasks.spawn_steps.domain import define_domain, remove_domain, render_xml, start_domain
from tasks.spawn_steps.image import fetch_image
from tasks.unsettled import mark_unknown
from tasks.workflow import On, StepSpec, Workflow


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    stage = (
        select(Step.detail["boot_stage"].as_string())
        .where(Step.operation_id == operation.id, Step.name == "wait_boot")
        .order_by(Step.position.desc())
        .limit(1)
    )
    instance = session.scalars(
        update(Instance)
        .where(Instance.id == operation.instance_id)
        .values(
            state=InstanceState.ACTIVE,
            power_state=PowerState.RUNNING,
            power_observed_at=func.clock_timestamp(),
            # Who only wanted it to run has no step that watched it.
            boot_stage=func.coalesce(stage.scalar_subquery(), BootStage.RUNNING.value),
        )
        .returning(Instance),
        execution_options={"populate_existing": True, "synchronize_session": False},
    ).one()
    return view_settled(session, instance, operation)


def _fail(session: Session, operation: Operation) -> None:
    """Leave nothing: the record is closed, its name is free, the operation tells why."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    if operation.dst_host is not None:
        release_claim(session, host=operation.dst_host, instance_id=instance.id)
    forget_disks(session, instance.id)
    instance.state = InstanceState.DELETED
    instance.deleted_at = func.clock_timestamp()
    instance.fault = operation.error
    session.execute(
        insert(Event).values(
            kind="instance.spawn_failed",
            instance_id=instance.id,
            operation_id=operation.id,
            host=operation.dst_host,
        )
    )


def _choose_next_host(session: Session, operation: Operation) -> bool:
    """Answer a host's own failure with another host, unless the caller insisted on this one."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    is_pinned = instance.spec.get("host") is not None
    host = choose_next_host(session, operation, is_pinned=is_pinned)
    if host is not None:
        instance.host = host
    session.flush()
    return host is not None


SPAWN = Workflow(
    kind="spawn",
    steps=(
        StepSpec("fetch_image", On.DST, fetch_image, admit=LIMIT_BUILDS, is_harmless=True),
        StepSpec("create_disks", On.DST, create_disks, undo=remove_disks, intends=True),
        StepSpec("build_config_drive", On.DST, build_config_drive, wanted_by=wants_drive),
        StepSpec("render_xml", On.DST, render_xml, is_harmless=True),
        StepSpec("define_domain", On.DST, define_domain, undo=remove_domain, intends=True),
        StepSpec("start_domain", On.DST, start_domain),
        StepSpec("wait_boot", On.DST, wait_boot, wanted_by=is_watched),
        StepSpec("inject_files", On.DST, inject_files, wanted_by=wants_agent_files),
    ),
    on_success=_succeed,
    on_failure=_fail,
    on_unknown=mark_unknown,
    replan=_choose_next_host,
    waits_for_host=False,
)
