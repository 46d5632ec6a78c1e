"""A running disk's top layer, copied to a new file while the guest runs, and the change-over to it.

QEMU's job belongs to libvirtd: it goes on when the process that began it dies, and whoever comes
next finds it in the domain's XML. Each function gets libvirt's connection; see virt.guest.
"""

from typing import Any
from uuid import UUID

import libvirt

from virt.guest import lookup

_NO_JOB = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INVALID_ARG)


def start(conn: Any, instance_id: UUID, target: str, disk_xml: str, bandwidth_bytes_s: int) -> None:
    """Begin to copy a disk's top layer into an existing file with a backing file of its own.

    Args:
        conn: libvirt's connection.
        instance_id: the guest.
        target: the guest's device.
        disk_xml: the destination, its backing chain spelled out.
        bandwidth_bytes_s: cap; 0 for none.
    """
    flags = (
        libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW
        | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        # Libvirt copies disks of persistent domains only under this flag: such a job would be
        # forgotten if QEMU ended, and that is what is wanted here.
        | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    )
    params = {}
    if bandwidth_bytes_s:
        params[libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH] = bandwidth_bytes_s
    lookup(conn, instance_id).blockCopy(target, disk_xml, params, flags)


def find_progress(conn: Any, instance_id: UUID, target: str) -> tuple[int, int] | None:
    """Return (bytes done, bytes in all) of a disk's job; None when it has none."""
    info = lookup(conn, instance_id).blockJobInfo(target, 0)
    return (int(info["cur"]), int(info["end"])) if info else None


def pivot(conn: Any, instance_id: UUID, target: str) -> None:
    """Let the guest go on with the copy; returns when it does."""
    lookup(conn, instance_id).blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def abort(conn: Any, instance_id: UUID, target: str) -> None:
    """End a disk's job and stay with the old file; no job, and no guest, are fine."""
    try:
        lookup(conn, instance_id).blockJobAbort(target, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (*_NO_JOB, libvirt.VIR_ERR_NO_DOMAIN):
            raise
