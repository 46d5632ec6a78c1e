"""What a guest's domain shall be: the typed description that becomes its XML."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

DiskBus = Literal["virtio", "scsi", "sata", "ide"]
DiskFormat = Literal["qcow2", "raw"]


@dataclass(frozen=True, kw_only=True)
class RemoteSource:
    """The raw bytes of a remote disk, read by QEMU itself.

    Args:
        protocol: how it is read; "nbd" by TCP or by a Unix socket.
        name: the path without its leading slash, or the name of the NBD export.
        host: the server's name or address; None with a socket.
        port: None for the protocol's own.
        query: the part of an address after "?". It stands in the XML: never a signature.
        socket: absolute path of an NBD server's Unix socket.
        verifies_certificate: whether an https server must prove who it is.
        readahead_bytes: how much more than asked for is read, http and https only.
        timeout_s: how long the server may be silent, http and https only.
    """

    protocol: Literal["nbd", "http", "https"]
    name: str = ""
    host: str | None = None
    port: int | None = None
    query: str | None = None
    socket: str | None = None
    verifies_certificate: bool = True
    readahead_bytes: int | None = None
    timeout_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class DiskSpec:
    """A disk backed by a file.

    Args:
        target: the guest's device name, e.g. "vda".
        path: absolute path of the file.
        format: its format, never guessed.
        backing_path: the file below it; None for none.
        backing_format: the format of that file.
        remote_backing: what is below the file, and below its backing file if it has one; None for
            none. The chain is declared to end there.
        bus: how the guest sees it.
        cache: "none" is the one that is safe for migration on shared storage.
        io: how QEMU asks the host's kernel; None for its own choice.
        discard: whether blocks that the guest gives back are given back to the host.
        detect_zeroes: what a write of zeroes becomes; None for a write of zeroes.
        error_policy: what a failed write does to the guest; None for QEMU's "enospace".
        rerror_policy: what a failed read does to it; None for the same.
        copies_on_read: whether what is read from below is kept in the file.
        boot_order: the place among what the firmware tries, from 1; None to leave it out.
        serial: what the guest reads as the disk's serial number.
        is_readonly: whether the guest may not write.
    """

    target: str
    path: str
    format: DiskFormat = "qcow2"
    backing_path: str | None = None
    backing_format: DiskFormat = "qcow2"
    remote_backing: RemoteSource | None = None
    bus: DiskBus = "virtio"
    cache: Literal["none", "writeback", "writethrough", "directsync", "unsafe"] = "none"
    io: Literal["threads", "native", "io_uring"] | None = None
    discard: Literal["unmap", "ignore"] = "unmap"
    detect_zeroes: Literal["off", "on", "unmap"] | None = None
    error_policy: Literal["stop", "report", "ignore", "enospace"] | None = None
    rerror_policy: Literal["stop", "report", "ignore"] | None = None
    copies_on_read: bool = False
    boot_order: int | None = None
    serial: str | None = None
    is_readonly: bool = False


@dataclass(frozen=True, kw_only=True)
class CdromSpec:
    """A CD-ROM with an ISO image, such as a config drive; path None for an empty drive.

    Its bus is any but virtio.
    """

    target: str
    path: str | None
    bus: DiskBus = "ide"
    boot_order: int | None = None


@dataclass(frozen=True, kw_only=True)
class NicSpec:
    """A network card on a bridge that exists on the host.

    Args:
        mac: "52:54:00:12:34:56".
        bridge: the bridge's name.
        filter_name: an nwfilter of libvirt; None for none.
        addresses: IPv4 addresses that the filter lets the guest use; none lets libvirt learn one.
        model: how the guest sees it.
        mtu: None for the bridge's own.
        boot_order: the place among what the firmware tries, from 1; None to leave it out.
    """

    mac: str
    bridge: str
    filter_name: str | None = None
    addresses: tuple[str, ...] = ()
    model: Literal["virtio", "e1000", "e1000e", "rtl8139"] = "virtio"
    mtu: int | None = None
    boot_order: int | None = None


@dataclass(frozen=True, kw_only=True)
class TopologySpec:
    """How vCPUs are arranged; the product is their number."""

    sockets: int
    cores: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class UefiSpec:
    """UEFI firmware of the host, and the guest's own variables.

    Args:
        code_path: absolute path of the firmware, read-only and shared by all guests.
        template_path: absolute path of the empty variable store that a new guest's is made of.
        nvram_path: absolute path of the guest's variable store; libvirt makes it.
    """

    code_path: str
    template_path: str
    nvram_path: str


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """A kernel that the host loads.

    Args:
        kernel_path: absolute path of the kernel.
        ramdisk_path: absolute path of the initial RAM disk; None for none.
        command_line: the kernel's.
    """

    kernel_path: str
    ramdisk_path: str | None = None
    command_line: str = ""


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
        topology: None puts each vCPU into a socket of its own.
        uefi: None for BIOS.
        kernel: None to boot from the devices that have a boot_order.
        disks: the root disk first.
        console_log_path: where the serial console is written; None for none.
        has_agent_channel: whether there is a channel for qemu-guest-agent.
        has_rng: whether the guest gets entropy from the host, at most 64 KiB/s.
        video: the graphics card; "none" for no screen.
        has_vnc: whether the screen is served, on 127.0.0.1 only.
        has_balloon: whether there is a memory balloon.
        has_panic_device: whether a kernel can tell of its own panic; otherwise only the console
            does.
        watchdog: what happens when the guest stops patting it; None for no watchdog.
        metadata: the owner's keys and values.
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
    topology: TopologySpec | None = None
    uefi: UefiSpec | None = None
    kernel: KernelSpec | None = None
    disks: tuple[DiskSpec, ...] = ()
    cdroms: tuple[CdromSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    console_log_path: str | None = None
    has_agent_channel: bool = True
    has_rng: bool = True
    video: Literal["vga", "virtio", "none"] = "vga"
    has_vnc: bool = True
    has_balloon: bool = True
    has_panic_device: bool = True
    watchdog: Literal["reset", "poweroff", "pause", "none"] | None = None
    metadata: tuple[tuple[str, str], ...] = ()
