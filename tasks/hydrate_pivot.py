"""The change-over of a guest's disk from its image's source to the cached image.

Which file is the disk is told by the domain: libvirt writes the new one into the running and the
stored definition at the change-over. Everything here begins with that look.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from innkeeper.errors import DomainNotFound, HypervisorError, HypervisorRefused
from models.instance import Instance
from models.remote_disks import mark_hydrated
from tasks.context import StepContext
from tasks.power_verbs import get_current_domain
from tasks.spawn_steps.remote_image import INSTANT_FILE
from tasks.workflow import Done, RollForward
from virt import disks
from virt.domain_xml import digest_xml
from virt.remote_overlay import rebase_at_rest
from virt.remote_xml import DiskLook, render_local_disk, with_local_disk

LOOK_EVERY_S = 0.5
HYDRATED_FILE = "root.qcow2"


def pivot(context: StepContext) -> Done:
    """See hydrate.pivot_disk."""
    base = context.details["verify_base"]
    if not base["is_remote"]:
        context.midway()
        return Done({"how": "was hydrated already"})
    new = _hydrated_file(context)
    base_path = Path(base["path"])
    context.intend(file=str(new))
    view = get_current_domain(context)
    look = _look(context)
    how = "found changed over"
    if look.path != str(new):
        if view.is_active:
            how = "copied"
            _copy(context, look, new, base_path)
        else:
            how = "rebased at rest"
            _rebase(context, look, new, base_path)
    _settle(context)
    return _done(context, {"how": how, "file": new.name})


def unpivot(context: StepContext) -> None:
    """See hydrate.unpivot_disk."""
    new = _hydrated_file(context)
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    if context.step.undo.get("file") != str(new):
        context.midway()
        return
    try:
        hypervisor.abort_disk_copy(instance_id, _target(context))
        context.midway()
        if _look(context).path == str(new):
            done = _done(context, {"how": "found changed over", "file": new.name})
            assert done.commit is not None
            raise RollForward(done.detail, done.commit)
    except DomainNotFound:
        context.midway()
        return
    disks.ensure_removed(new)


def _target(context: StepContext) -> str:
    return str(context.details["verify_base"]["target"])


def _hydrated_file(context: StepContext) -> Path:
    return context.pool.instance_dir(context.instance.id) / HYDRATED_FILE


def _look(context: StepContext) -> DiskLook:
    return context.host.hypervisor.look_at_disk(context.instance.id, _target(context))


def _copy(context: StepContext, look: DiskLook, new: Path, base: Path) -> None:
    """Copy the running guest's top layer, and let it go on with the copy."""
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    with hypervisor.watch(instance_id) as watch:
        if look.mirror_path is None:
            # A copy without a job is what a dead attempt has left: nothing keeps it equal.
            disks.ensure_removed(new)
            disks.create_overlay(
                new,
                backing_path=base,
                backing_format="raw",
                size_bytes=disks.qemu_img_info(
                    Path(look.path), "qcow2", is_in_use=True
                ).virtual_size_bytes,
            )
            hypervisor.start_disk_copy(
                instance_id, _target(context), render_local_disk(str(new), str(base))
            )
        else:
            context.note(f"attempt {context.step.key.attempt}: adopted the running copy")
        context.midway()
        while True:
            context.checkpoint()
            look = _look(context)
            if look.path == str(new):
                return
            if look.mirror_path is None:
                raise HypervisorError(
                    "The copying of the disk ended before it was complete.",
                    {"host": context.host.name, "file": new.name},
                )
            if look.is_mirror_ready:
                break
            _show(context)
            watch.wait(LOOK_EVERY_S)
    context.go_through()
    hypervisor.pivot_disk(instance_id, _target(context))
    look = _look(context)
    if look.path != str(new):
        raise HypervisorError(
            "Libvirt did not change over to the copy of the disk.",
            {"host": context.host.name, "file": new.name},
        )


def _rebase(context: StepContext, look: DiskLook, new: Path, base: Path) -> None:
    """Put the cached image below the overlay of a guest that is off, under the new name."""
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    old = Path(look.path)
    context.go_through()
    if old.exists():
        # Whatever bears the new name is a copy that never became the disk.
        disks.ensure_removed(new)
        rebase_at_rest(old, backing_path=base)
        old.rename(new)
    context.midway()
    xml = hypervisor.dump_xml(instance_id, inactive=True, secure=True)
    hypervisor.define(with_local_disk(xml, _target(context), path=str(new), backing_path=str(base)))


def _settle(context: StepContext) -> None:
    """Remove the old file, and let a guest run on that had waited for the source."""
    hypervisor, instance_id = context.host.hypervisor, context.instance.id
    disks.ensure_removed(_hydrated_file(context).with_name(INSTANT_FILE))
    if get_current_domain(context).waits_for_disk:
        try:
            hypervisor.ensure_resumed(instance_id)
        except HypervisorRefused as error:
            context.note(f"the guest was not resumed: {error.message}")


def _done(context: StepContext, detail: dict[str, Any]) -> Done:
    instance, new = context.instance, _hydrated_file(context)
    base_path = context.details["verify_base"]["path"]
    xml = with_local_disk(
        instance.domain_xml or "", _target(context), path=str(new), backing_path=base_path
    )

    def commit(session: Session) -> None:
        mark_hydrated(session, instance.id, file=new.name)
        session.execute(
            update(Instance)
            .where(Instance.id == instance.id)
            .values(domain_xml=xml, domain_xml_sha256=digest_xml(xml))
        )

    return Done(detail, commit)


def _show(context: StepContext) -> None:
    figures = context.host.hypervisor.find_disk_copy(context.instance.id, _target(context))
    if figures is None:
        return
    done_bytes, total_bytes = figures
    context.progress(
        min(done_bytes / total_bytes, 0.99) if total_bytes else 0.0,
        f"copying what the guest has written, {done_bytes / 2**20:.0f} MiB",
        done_bytes=done_bytes,
        total_bytes=total_bytes,
    )
