"""The parts of a guest: disks, network cards, hardware, what it is told."""

import base64
import binascii
import re
from ipaddress import ip_address, ip_interface
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from innkeeper.messages import Name, PoolName, Request, Sha256

DiskBus = Literal["virtio", "scsi", "sata", "ide"]
DiskFormat = Literal["qcow2", "raw"]

VFAT_MAX_MIB = 2 * 1024 * 1024
USER_DATA_MAX_BYTES = 64 * 1024
INJECTED_MAX_BYTES = 256 * 1024
SEALED_PREFIX = "sealed:v1:"
SEALED_MAX_CHARS = 512 * 1024


def is_sealed(text: str) -> bool:
    """Return whether a text is encrypted to the workers' key."""
    return text.startswith(SEALED_PREFIX)


def _check_interface(text: str) -> str:
    return str(ip_interface(text))


def _check_address(text: str) -> str:
    return str(ip_address(text))


def _check_line(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("control characters and line breaks cannot stand here")
    return text


def _check_xml_text(text: str) -> str:
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", text):
        raise ValueError("control characters cannot stand here")
    return text


InterfaceAddress = Annotated[str, AfterValidator(_check_interface)]
Address = Annotated[str, AfterValidator(_check_address)]
Line = Annotated[str, Field(max_length=4096), AfterValidator(_check_line)]
XmlText = Annotated[str, Field(max_length=4096), AfterValidator(_check_xml_text)]
Serial = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,20}$")]
MacAddress = Annotated[str, Field(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")]
BridgeName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,15}$")]


class ExtraDisk(Request):
    """A disk beside the root disk, empty when the guest first sees it.

    Args:
        kind: ``ephemeral`` and ``data`` may carry a file system; ``swap`` is made as swap space.
        size_mib: its size in MiB; with vfat at most 2 TiB.
        filesystem: what an ephemeral or data disk is formatted with.
        label: the file system's or the swap space's label.
        format: the file's format on the host.
        bus: how the guest sees it.
        serial: what the guest reads as its serial number; None for its target, such as ``vdb``.
        pool: the storage pool that it is in, as named in the hosts' settings; None for the guest's.
    """

    kind: Literal["ephemeral", "swap", "data"] = "data"
    size_mib: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)]
    filesystem: Literal["none", "ext4", "vfat"] = "none"
    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,11}$")] | None = None
    format: DiskFormat = "qcow2"
    bus: DiskBus = "virtio"
    serial: Serial | None = None
    pool: PoolName | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.kind == "swap" and self.filesystem != "none":
            raise ValueError("a swap disk carries no file system")
        if self.label is not None and self.kind != "swap" and self.filesystem == "none":
            raise ValueError("label: there is no file system to carry it")
        if self.filesystem == "vfat" and self.size_mib > VFAT_MAX_MIB:
            raise ValueError(f"size_mib: vfat takes at most {VFAT_MAX_MIB} MiB")
        return self


class NetworkCard(Request):
    """A network card on a bridge that exists on the host, with the anti-spoof filter.

    Args:
        bridge: the bridge's name.
        mac: lower-case, unicast; None for one made of the guest's id.
        model: how the guest sees it.
        addresses: what it may use, with prefix lengths: ``10.0.0.5/24``; they stand in the network
            data. Empty for DHCP.
        gateway: the default route.
        nameservers: for the network data.
        mtu: None for the bridge's own.
    """

    bridge: BridgeName
    mac: MacAddress | None = None
    model: Literal["virtio", "e1000", "e1000e", "rtl8139"] = "virtio"
    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=16)] = ()
    gateway: Address | None = None
    nameservers: Annotated[tuple[Address, ...], Field(max_length=8)] = ()
    mtu: Annotated[int, Field(ge=576, le=65535)] | None = None


class DirectBoot(Request):
    """A kernel that the host loads, instead of the root disk's own boot loader.

    Args:
        kernel: address of the kernel, as for an image.
        kernel_sha256: its digest.
        ramdisk: address of the initial RAM disk; None for none.
        ramdisk_sha256: its digest.
        command_line: the kernel's.
    """

    kernel: Annotated[str, Field(min_length=1, max_length=4096)]
    kernel_sha256: Sha256 | None = None
    ramdisk: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    ramdisk_sha256: Sha256 | None = None
    command_line: Line = ""


class InjectedFile(Request):
    """A file that the guest gets.

    Args:
        path: absolute path in the guest.
        content: base64 of the bytes, or sealed text.
        owner: ``user`` or ``user:group``, as the guest knows them.
        mode: octal: ``0644``.
        via: ``config_drive`` puts it there for cloud-init; ``agent`` writes it through the guest
            agent once that answers, which needs ``wait`` at ``agent`` or above.
    """

    path: Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]{1,1023}$")]
    content: Annotated[str, Field(max_length=SEALED_MAX_CHARS)]
    owner: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?$")] = (
        "root:root"
    )
    mode: Annotated[str, Field(pattern=r"^0[0-7]{3,4}$")] = "0644"
    via: Literal["config_drive", "agent"] = "config_drive"

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if ".." in self.path.split("/"):
            raise ValueError("path: may not climb with '..'")
        if not is_sealed(self.content):
            try:
                base64.b64decode(self.content, validate=True)
            except binascii.Error:
                raise ValueError("content: is neither base64 nor sealed") from None
        return self


class GuestData(Request):
    """What the guest is told when it first boots, on a drive it can read.

    Args:
        drive: ``config-2`` is OpenStack's layout, ``nocloud`` that of cloud-init's NoCloud;
            ``both`` puts the two on one ISO, which carries the label ``config-2``.
        user_data: for cloud-init; text of at most 64 KiB, or sealed.
        ssh_keys: public keys, one line each.
        admin_password: sealed text only; see the client's ``seal``.
        files: injected files.
    """

    drive: Literal["none", "config-2", "nocloud", "both"] = "none"
    user_data: Annotated[str, Field(max_length=SEALED_MAX_CHARS)] | None = None
    ssh_keys: Annotated[tuple[Line, ...], Field(max_length=64)] = ()
    admin_password: (
        Annotated[
            str,
            Field(pattern=r"^sealed:v1:[A-Za-z0-9+/=]+$", max_length=8192),
        ]
        | None
    ) = None
    files: Annotated[tuple[InjectedFile, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        told = self.user_data or self.ssh_keys or self.admin_password
        on_drive = any(file.via == "config_drive" for file in self.files)
        if self.drive == "none" and (told or on_drive):
            raise ValueError("drive: user data, keys, a password and files need a drive")
        plain = self.user_data is not None and not is_sealed(self.user_data)
        if plain and len((self.user_data or "").encode()) > USER_DATA_MAX_BYTES:
            raise ValueError(f"user_data: has more than {USER_DATA_MAX_BYTES} bytes")
        if sum(len(file.content) for file in self.files) > INJECTED_MAX_BYTES * 4 // 3:
            raise ValueError(f"files: have more than {INJECTED_MAX_BYTES} bytes together")
        return self


class CpuTopology(Request):
    """How vCPUs are arranged: sockets × cores × threads is their number.

    Args:
        sockets: sockets of the machine.
        cores: cores of a socket.
        threads: threads of a core.
    """

    sockets: Annotated[int, Field(ge=1, le=64)] = 1
    cores: Annotated[int, Field(ge=1, le=256)] = 1
    threads: Annotated[int, Field(ge=1, le=8)] = 1


class Hardware(Request):
    """The machine that the guest sees; what is not said is the host's default at its first boot.

    Args:
        machine: a versioned machine type, for example ``pc-q35-7.2``.
        firmware: BIOS or UEFI.
        cpu_model: a named CPU model of libvirt.
        topology: how the vCPUs are arranged.
        root_bus: the root disk's bus.
        boot_order: what the firmware tries, in order.
        video: the graphics card; ``none`` for no screen.
        has_vnc: whether the screen is served, on the host's 127.0.0.1.
        has_rng: whether the guest gets entropy from the host.
        has_balloon: whether it has a memory balloon.
        has_agent_channel: whether it has a channel for the guest agent.
        watchdog: what happens when the guest stops patting its watchdog; ``none`` for no watchdog.
        console_log_mib: how much of the serial console the host keeps, in MiB.
    """

    machine: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*-[0-9]+(\.[0-9]+)+$")] | None = (
        None
    )
    firmware: Literal["bios", "uefi"] = "bios"
    cpu_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    topology: CpuTopology | None = None
    root_bus: DiskBus = "virtio"
    boot_order: Annotated[tuple[Literal["disk", "cdrom", "network"], ...], Field(min_length=1)] = (
        "disk",
    )
    video: Literal["vga", "virtio", "none"] = "vga"
    has_vnc: bool = True
    has_rng: bool = True
    has_balloon: bool = True
    has_agent_channel: bool = True
    watchdog: Literal["reset", "poweroff", "pause", "none"] = "none"
    console_log_mib: Annotated[int, Field(ge=1, le=1024)] = 16

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(set(self.boot_order)) != len(self.boot_order):
            raise ValueError("boot_order: names something twice")
        return self


class GroupMembership(Request):
    """A server group that the guest joins; the first member's policy makes the group.

    Args:
        name: the group's.
        policy: ``affinity`` puts all members on one host, ``anti_affinity`` each on its own; the
            soft ones only prefer it.
    """

    name: Name
    policy: Literal["affinity", "anti_affinity", "soft_affinity", "soft_anti_affinity"]
