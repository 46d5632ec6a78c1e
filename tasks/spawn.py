"""Spawn: fetch the image, make the disk, render and define the domain, start it, see it boot."""

from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from innkeeper.errors import HostUnsuitable, HypervisorUnavailable, NoHostFits, StaleDomain
from innkeeper.states import BootStage, InstanceState, PowerState
from innkeeper.types import InstanceSpec
from models.claims import release_claim
from models.event import Event
from models.image import CachedImage, Image
from models.instance import Instance
from models.operation import Operation, Step
from models.queries import view_settled
from tasks.admission import limit_builds
from tasks.choosing import choose_and_claim
from tasks.context import StepContext
from tasks.guest_domain import describe_domain
from tasks.instance_files import ensure_instance_dir_removed, is_recorded
from tasks.placement import Demand
from tasks.unsettled import mark_unknown
from tasks.workflow import Done, On, StepSpec, Workflow
from virt import disks
from virt.boot import wait_for_boot
from virt.domain_xml import digest_xml, render_domain

GIB = 1024**3


def demand_of(instance: Instance) -> Demand:
    """Return what a guest needs of a host."""
    return Demand(instance.vcpus, instance.memory_mib, instance.disk_gib, instance.pool)


def fetch_image(context: StepContext) -> Done:
    """Bring the image into the pool's cache.

    Queue: host.<dst>; seconds to minutes for a new image, milliseconds for a cached one.
    Idempotency: the cache is addressed by digest; one fetch at a time per digest and pool.
    Undo: none; a cached image is nobody's in particular and ages by itself.
    On crash: a partial download is continued.
    Retries: fetch_failed, with back-off; never a wrong digest or an unsafe image.
    """
    spec = InstanceSpec.model_validate(context.instance.spec)
    limit_bytes = spec.disk_gib * GIB or None

    def show(done_bytes: int, total_bytes: int | None) -> None:
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        context.progress(
            fraction,
            f"fetching {done_bytes / 2**20:.0f} MiB",
            done_bytes=done_bytes,
            total_bytes=total_bytes,
        )

    image = context.pool.images.ensure(
        spec.image,
        spec.sha256,
        spec.image_format,
        max_virtual_size_bytes=limit_bytes,
        on_progress=show,
        check=context.checkpoint,
    )
    context.midway()
    host, instance = context.host.name, context.instance

    def commit(session: Session) -> None:
        session.execute(
            upsert(Image)
            .values(
                sha256=image.digest,
                format=image.format,
                size_bytes=image.size_bytes,
                virtual_size_bytes=image.virtual_size_bytes,
                source=spec.image,
            )
            .on_conflict_do_nothing()
        )
        session.execute(
            upsert(CachedImage)
            .values(host=host, pool=instance.pool, sha256=image.digest, path=str(image.path))
            .on_conflict_do_update(
                index_elements=["host", "pool", "sha256"],
                set_={"last_used_at": func.clock_timestamp(), "path": str(image.path)},
            )
        )
        session.execute(
            update(Instance).where(Instance.id == instance.id).values(image_sha256=image.digest)
        )

    return Done(
        {
            "path": str(image.path),
            "sha256": image.digest,
            "format": image.format,
            "virtual_size_bytes": image.virtual_size_bytes,
            "fetched": image.was_fetched,
        },
        commit,
    )


def create_disks(context: StepContext) -> Done:
    """Make the guest's directory and its root disk, an overlay on the cached image.

    Queue: host.<dst>; about 10 ms.
    Idempotency: an overlay that is there already with the same base and size is kept.
    Undo: removes the directory that the ledger names.
    On crash: begun again; a half-made overlay has another name and is replaced.
    Retries: none of its own.
    """
    image = context.details["fetch_image"]
    root_disk = context.pool.root_disk(context.instance.id)
    size_bytes = max(context.instance.disk_gib * GIB, int(image["virtual_size_bytes"]))
    context.intend(directory=str(root_disk.parent), epoch=context.operation.epoch)
    root_disk.parent.mkdir(parents=True, exist_ok=True)
    context.midway()
    disks.create_overlay(
        root_disk,
        backing_path=Path(image["path"]),
        backing_format=image["format"],
        size_bytes=size_bytes,
    )
    return Done({"root_disk": str(root_disk), "size_bytes": size_bytes})


def remove_disks(context: StepContext) -> None:
    """Undo of create_disks: remove the directory that the ledger says was made."""
    if is_recorded(context.pool, context.instance.id, context.step.undo.get("directory")):
        context.midway()
        ensure_instance_dir_removed(context.pool, context.instance.id)


def render_xml(context: StepContext) -> Done:
    """Render the domain's XML and store it; a pure function of the rows.

    Queue: host.<dst>; about a millisecond.
    Idempotency: the same rows give the same bytes.
    Undo: none; the row is the guest's own.
    On crash: rendered again.
    Retries: none.
    """
    domain = describe_domain(
        context.host,
        context.instance,
        operation=context.operation,
        image_path=context.details["fetch_image"]["path"],
        image_format=context.details["fetch_image"]["format"],
    )
    context.midway()
    xml = render_domain(domain)
    instance_id, epoch, digest = context.instance.id, context.operation.epoch, digest_xml(xml)

    def commit(session: Session) -> None:
        session.execute(
            update(Instance)
            .where(Instance.id == instance_id)
            .values(
                domain_xml=xml,
                domain_xml_sha256=digest,
                domain_epoch=epoch,
                guest_abi={"machine": domain.machine, "cpu": domain.cpu},
            )
        )

    return Done({"sha256": digest, "machine": domain.machine}, commit)


def define_domain(context: StepContext) -> Done:
    """Define the stored XML in libvirt.

    Queue: host.<dst>; a few milliseconds.
    Idempotency: defining the same XML again changes nothing.
    Undo: destroys and undefines the domain, if it is this operation's.
    On crash: begun again.
    Retries: while libvirt is out of reach.
    """
    view = context.host.hypervisor.find_domain(context.instance.id)
    if view is not None and view.epoch != context.operation.epoch:
        raise StaleDomain(
            f"Host {context.host.name} has a domain of this guest from epoch {view.epoch}.",
            {"domain_epoch": view.epoch, "record_epoch": context.operation.epoch},
        )
    context.intend(domain=str(context.instance.id), epoch=context.operation.epoch)
    context.host.console_dir.mkdir(parents=True, exist_ok=True)
    context.midway()
    context.host.hypervisor.define(context.instance.domain_xml or "")
    return Done({"adopted": view is not None})


def remove_domain(context: StepContext) -> None:
    """Undo of define_domain: only a domain of this very operation is destroyed and undefined."""
    hypervisor = context.host.hypervisor
    view = hypervisor.find_domain(context.instance.id)
    if view is not None and view.epoch == context.operation.epoch:
        hypervisor.ensure_destroyed(context.instance.id)
        context.midway()
        hypervisor.ensure_undefined(context.instance.id)
    context.host.console_path(context.instance.id).unlink(missing_ok=True)


def start_domain(context: StepContext) -> Done:
    """Start the domain.

    Queue: host.<dst>; about a quarter of a second.
    Idempotency: a domain that runs already is left alone.
    Undo: by define_domain's.
    On crash: begun again; libvirt finishes a start whose caller died.
    Retries: while libvirt is out of reach.
    """
    context.midway()
    context.host.hypervisor.ensure_started(context.instance.id)
    return Done()


def wait_boot(context: StepContext) -> Done:
    """Wait until the guest has reached the stage that was asked for.

    Queue: host.<dst>; as long as the guest takes to boot.
    Idempotency: only looks.
    Undo: none.
    On crash: looks again; the ladder is climbed from what is there.
    Retries: none; a guest that dies fails at once, a late one at boot_timeout_s.
    """
    spec = InstanceSpec.model_validate(context.instance.spec)
    wanted = BootStage(spec.wait)

    def show(stage: BootStage) -> None:
        context.progress(stage.rung / wanted.rung if wanted.rung else 1.0, f"guest is at {stage}")

    context.midway()
    reached = wait_for_boot(
        context.host.hypervisor,
        context.instance.id,
        wanted=wanted,
        timeout_s=spec.boot_timeout_s,
        console_path=context.host.console_path(context.instance.id),
        on_stage=show,
        check=context.checkpoint,
    )
    return Done({"boot_stage": reached.value})


def _succeed(session: Session, operation: Operation) -> dict[str, Any]:
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    instance.state = InstanceState.ACTIVE
    instance.power_state = PowerState.RUNNING
    instance.power_observed_at = func.clock_timestamp()
    boot = session.scalars(
        select(Step.detail)
        .where(Step.operation_id == operation.id, Step.name == "wait_boot")
        .order_by(Step.position.desc())
        .limit(1)
    ).one()
    instance.boot_stage = BootStage(boot["boot_stage"])
    return view_settled(session, instance, operation)


def _fail(session: Session, operation: Operation) -> None:
    """Leave nothing: the record is closed, its name is free, the operation tells why."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    if operation.dst_host is not None:
        release_claim(session, host=operation.dst_host, instance_id=instance.id)
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


HOST_FAULTS = frozenset({HostUnsuitable.code, HypervisorUnavailable.code})
MOST_HOSTS_TRIED = 3


def _choose_next_host(session: Session, operation: Operation) -> bool:
    """Answer a host's own failure with another host, unless the caller insisted on this one."""
    instance = session.get_one(Instance, operation.instance_id, populate_existing=True)
    error = operation.error or {}
    if error.get("code") not in HOST_FAULTS or instance.spec.get("host") is not None:
        return False
    refusals = [*operation.refusals]
    refusals.append(
        {"host": operation.dst_host, "code": error["code"], "message": error.get("message", "")}
    )
    tried = frozenset(r["host"] for r in refusals if r["code"] in HOST_FAULTS)
    if len(tried) >= MOST_HOSTS_TRIED:
        return False
    if operation.dst_host is not None:
        release_claim(session, host=operation.dst_host, instance_id=instance.id)
    try:
        host, _ = choose_and_claim(
            session,
            instance_id=instance.id,
            operation_id=operation.id,
            demand=demand_of(instance),
            wanted=None,
            ignored=tried,
            what=f"instance {instance.name}",
        )
    except NoHostFits:
        return False
    operation.refusals = refusals
    operation.dst_host = instance.host = host
    session.flush()
    return True


SPAWN = Workflow(
    kind="spawn",
    steps=(
        StepSpec("fetch_image", On.DST, fetch_image, admit=limit_builds, is_harmless=True),
        StepSpec("create_disks", On.DST, create_disks, undo=remove_disks),
        StepSpec("render_xml", On.DST, render_xml, is_harmless=True),
        StepSpec("define_domain", On.DST, define_domain, undo=remove_domain),
        StepSpec("start_domain", On.DST, start_domain),
        StepSpec("wait_boot", On.DST, wait_boot),
    ),
    on_success=_succeed,
    on_failure=_fail,
    on_unknown=mark_unknown,
    replan=_choose_next_host,
    waits_for_host=False,
)
