"""The config drive of a new guest: built, written into its directory, recorded as a disk."""

from sqlalchemy.orm import Session

from innkeeper.types import InstanceSpec
from models.disks import replace_drive
from tasks.config_drive import FILE, build_drive, choose_slot, write_drive
from tasks.context import StepContext
from tasks.guest_abi import freeze
from tasks.guest_disks import get_guest_disks
from tasks.workflow import Done


def build_config_drive(context: StepContext) -> Done:
    """Build what the guest is told at its first boot, as an ISO image in its directory.

    Queue: host.<dst>; about 20 ms; only for guests that want one.
    Idempotency: the same rows give the same bytes; the file is replaced in one go.
    Undo: create_disks's, which removes the directory that the ledger names.
    On crash: begun again; a half-written file has another name and is replaced.
    Retries: none; secrets that this host cannot open stay closed.
    """
    instance = context.instance
    spec = InstanceSpec.model_validate(instance.spec)
    taken = {disk.target for disk in get_guest_disks(context)}
    aliases = context.host.hypervisor.get_facts().machine_types
    # The same that render_xml freezes.
    abi = freeze(instance.id, spec, context.host.guest_defaults, aliases)
    bus, target = choose_slot(abi.machine, taken)
    drive = build_drive(instance, context.keyring)
    # Its directory is create_disks's: made, and recorded before it was made.
    path = context.pool.instance_dir(instance.id) / FILE
    context.midway()
    write_drive(path, drive.image)
    row = {
        "target": target,
        "file": FILE,
        "format": "raw",
        "bus": bus,
        "size_bytes": len(drive.image),
        "facts": {"sha256": drive.sha256, "keys": list(drive.keys)},
    }

    def commit(session: Session) -> None:
        replace_drive(session, instance.id, row)

    return Done({"target": target, "size_bytes": len(drive.image), "sha256": drive.sha256}, commit)
