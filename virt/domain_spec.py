"""What a guest's domain shall be: the typed description that becomes its XML."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class DiskSpec:
    """A disk backed by a file.

    Args:
        target: the guest's device name, e.g. "vda".
        path: absolute path of the file.
        format: its format, never guessed.
        backing_path: the file below it; None for none. Its own backing is declared to be none.
        backing_format: the format of that file.
        bus: how the guest sees it.
        cache: "none" is the one that is safe for migration on shared storage.
        serial: what the guest reads as the disk's serial number.
        is_readonly: whether the guest may not write.
    """

    target: str
    path: str
    format: Literal["qcow2", "raw"] = "qcow2"
    backing_path: str | None = None
    backing_format: Literal["qcow2", "raw"] = "qcow2"
    bus: Literal["virtio", "scsi", "sata", "ide"] = "virtio"
    cache: Literal["none", "writeback", "writethrough", "unsafe"] = "none"
    serial: str | None = None
    is_readonly: bool = False


@dataclass(frozen=True, kw_only=True)
class CdromSpec:
    """A CD-ROM with an ISO image, such as a config drive; path None for an empty drive."""

    target: str
    path: str | None
    bus: Literal["ide", "sata", "scsi"] = "ide"


@dataclass(frozen=True, kw_only=True)
class NicSpec:
    """A network card on a bridge that exists on the host.

    Args:
        mac: "52:54:00:12:34:56".
        bridge: the bridge's name.
        filter_name: an nwfilter of libvirt; None for none.
        model: how the guest sees it.
        mtu: None for the bridge's own.
    """

    mac: str
    bridge: str
    filter_name: str | None = None
    model: str = "virtio"
    mtu: int | None = None


@dataclass(frozen=True, kw_only=True)
class DomainSpec:
    """Everything a domain's XML says.

    Args:
        instance_id: becomes the domain's UUID.
        name: the domain's name.
        epoch: the record's epoch; a host starts only the current one.
        operation_id: the operation that defines it.
        vcpus: number of virtual CPUs.
        memory_mib: memory in MiB.
        machine: a versioned machine type, e.g. "pc-i440fx-7.2", because an alias means something
            else after the next upgrade of QEMU.
        domain_type: "qemu" or "kvm".
        cpu: a named CPU model; None for the machine type's default.
        disks: in boot order.
        console_log_path: where the serial console is written; None for none.
        has_agent_channel: whether there is a channel for qemu-guest-agent.
        has_rng: whether the guest gets entropy from the host.
        has_vnc: whether there is a screen, served on 127.0.0.1 only.
        has_balloon: whether there is a memory balloon.
        watchdog: what happens when the guest stops patting it; None for no watchdog.
    """

    instance_id: UUID
    name: str
    epoch: int
    operation_id: UUID
    vcpus: int
    memory_mib: int
    machine: str
    domain_type: Literal["qemu", "kvm"] = "qemu"
    arch: str = "x86_64"
    cpu: str | None = None
    disks: tuple[DiskSpec, ...] = ()
    cdroms: tuple[CdromSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    console_log_path: str | None = None
    has_agent_channel: bool = True
    has_rng: bool = True
    has_vnc: bool = True
    has_balloon: bool = True
    watchdog: Literal["reset", "poweroff", "none"] | None = None
