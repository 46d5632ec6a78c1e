"""What keeps a running guest where it is, asked of libvirt and of QEMU; and what a host lacks.

Each function gets libvirt's connection object and is run through ``Connection.call``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import libvirt
import libvirt_qemu

from virt.guest import lookup
from virt.migration_needs import SecretNeed

REPLY_MAX_CHARS = 1 << 20
_USAGE_TYPES = {
    "volume": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME,
    "ceph": libvirt.VIR_SECRET_USAGE_TYPE_CEPH,
    "iscsi": libvirt.VIR_SECRET_USAGE_TYPE_ISCSI,
    # A LUKS disk names its secret with the type «passphrase».
    "passphrase": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME,
}


@dataclass(frozen=True, kw_only=True)
class Blockers:
    """What stands in a migration's way on the guest's own host.

    Args:
        snapshots: names of its snapshots, which a migration would leave behind.
        disk_jobs: targets of disks with a running block job.
        qemu_reasons: QEMU's own sentences.
    """

    snapshots: tuple[str, ...]
    disk_jobs: tuple[str, ...]
    qemu_reasons: tuple[str, ...]


def find_blockers(conn: Any, instance_id: UUID, targets: Sequence[str]) -> Blockers:
    """Return what keeps a running guest here.

    Args:
        conn: libvirt's connection.
        instance_id: the guest.
        targets: its disks.
    """
    domain = lookup(conn, instance_id)
    return Blockers(
        snapshots=tuple(domain.snapshotListNames()),
        disk_jobs=tuple(target for target in targets if domain.blockJobInfo(target, 0)),
        qemu_reasons=_ask_qemu(domain),
    )


def _ask_qemu(domain: Any) -> tuple[str, ...]:
    # QEMU alone knows which of its devices cannot be saved; libvirt hands the question on.
    text = libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-migrate"}), 0)
    answer = json.loads(text) if len(text) <= REPLY_MAX_CHARS else {}
    return tuple(str(reason) for reason in (answer.get("return") or {}).get("blocked-reasons", ()))


def find_uuid_of_name(conn: Any, name: str) -> UUID | None:
    """Return the UUID of the domain that has a name; None when the name is free."""
    try:
        return UUID(bytes=conn.lookupByName(name).UUID())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def has_filter(conn: Any, name: str) -> bool:
    """Return whether the host has an nwfilter of that name."""
    try:
        conn.nwfilterLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NWFILTER:
            return False
        raise
    return True


def has_secret(conn: Any, need: SecretNeed) -> bool:
    """Return whether the host has a secret with a value to give."""
    try:
        if need.uuid is not None:
            conn.secretLookupByUUIDString(need.uuid)
        else:
            kind = _USAGE_TYPES.get(need.kind, libvirt.VIR_SECRET_USAGE_TYPE_NONE)
            conn.secretLookupByUsage(kind, need.usage or "")
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
            return False
        raise
    return True


def read_available_mib(conn: Any) -> int:
    """Return how much memory the host could give a new guest, caches included."""
    said = conn.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    return int(said["free"] + said.get("buffers", 0) + said.get("cached", 0)) // 1024
