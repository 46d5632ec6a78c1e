"""A guest's domain XML: typed description in, text out, and back only as far as we must read it.

Pure functions. Text and attributes go through lxml, which escapes them; nothing is pasted. XML that
comes from elsewhere is parsed without entities, DTDs or network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from uuid import UUID

from lxml import etree

from innkeeper.errors import InvalidRequest

METADATA_URI = "https://innkeeper.dev/xmlns/1"
METADATA_KEY = "innkeeper"
_GUEST = f"{{{METADATA_URI}}}guest"

Element = etree._Element


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


def render_domain(spec: DomainSpec) -> str:
    """Return the domain XML of a guest; the same spec gives the same bytes.

    Raises:
        InvalidRequest: a value cannot stand in XML, or a path is not absolute.
    """
    try:
        return _render(spec)
    except ValueError as error:
        raise InvalidRequest(
            f"The guest {spec.instance_id} cannot be described to libvirt: {error}.",
            {"problems": [{"path": "domain", "message": str(error)}]},
        ) from error


def _render(spec: DomainSpec) -> str:
    root = etree.Element("domain", type=spec.domain_type)
    _text(root, "name", spec.name)
    _text(root, "uuid", str(spec.instance_id))
    metadata = etree.SubElement(root, "metadata")
    metadata.append(_guest_element(spec.epoch, spec.operation_id))
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus), placement="static")
    os_ = etree.SubElement(root, "os")
    _text(os_, "type", "hvm", arch=spec.arch, machine=spec.machine)
    etree.SubElement(os_, "boot", dev="hd")
    features = etree.SubElement(root, "features")
    etree.SubElement(features, "acpi")
    etree.SubElement(features, "apic")
    _cpu(root, spec.cpu)
    clock = etree.SubElement(root, "clock", offset="utc")
    etree.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    etree.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    etree.SubElement(clock, "timer", name="hpet", present="no")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "destroy")
    _devices(etree.SubElement(root, "devices"), spec)
    return _to_text(root)


def _cpu(root: Element, model: str | None) -> None:
    if model is None:
        return
    cpu = etree.SubElement(root, "cpu", mode="custom", match="exact", check="partial")
    _text(cpu, "model", model, fallback="forbid")


def _devices(devices: Element, spec: DomainSpec) -> None:
    for disk in spec.disks:
        _disk(devices, disk)
    for cdrom in spec.cdroms:
        _cdrom(devices, cdrom)
    # No USB: an idle controller costs a guest without KVM a few per cent of a CPU.
    etree.SubElement(devices, "controller", type="usb", model="none")
    for nic in spec.nics:
        _nic(devices, nic)
    if spec.console_log_path is not None:
        _console(devices, spec.console_log_path)
    if spec.has_agent_channel:
        channel = etree.SubElement(devices, "channel", type="unix")
        etree.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _screen(devices, spec.has_vnc)
    if spec.watchdog is not None:
        etree.SubElement(devices, "watchdog", model="i6300esb", action=spec.watchdog)
    etree.SubElement(devices, "memballoon", model="virtio" if spec.has_balloon else "none")
    if spec.has_rng:
        rng = etree.SubElement(devices, "rng", model="virtio")
        _text(rng, "backend", "/dev/urandom", model="random")


def _disk(devices: Element, spec: DiskSpec) -> None:
    disk = etree.SubElement(devices, "disk", type="file", device="disk")
    driver = etree.SubElement(disk, "driver", name="qemu", type=spec.format, cache=spec.cache)
    driver.set("discard", "unmap")
    etree.SubElement(disk, "source", file=_absolute(spec.path))
    # Always spelled out to its end: libvirt must never look into a file a guest has written.
    backing = etree.SubElement(disk, "backingStore")
    if spec.backing_path is not None:
        backing.set("type", "file")
        etree.SubElement(backing, "format", type=spec.backing_format)
        etree.SubElement(backing, "source", file=_absolute(spec.backing_path))
        etree.SubElement(backing, "backingStore")
    etree.SubElement(disk, "target", dev=spec.target, bus=spec.bus)
    if spec.serial is not None:
        _text(disk, "serial", spec.serial)
    if spec.is_readonly:
        etree.SubElement(disk, "readonly")


def _cdrom(devices: Element, spec: CdromSpec) -> None:
    disk = etree.SubElement(devices, "disk", type="file", device="cdrom")
    etree.SubElement(disk, "driver", name="qemu", type="raw")
    if spec.path is not None:
        etree.SubElement(disk, "source", file=_absolute(spec.path))
    etree.SubElement(disk, "target", dev=spec.target, bus=spec.bus)
    etree.SubElement(disk, "readonly")


def _nic(devices: Element, spec: NicSpec) -> None:
    nic = etree.SubElement(devices, "interface", type="bridge")
    etree.SubElement(nic, "mac", address=spec.mac)
    etree.SubElement(nic, "source", bridge=spec.bridge)
    etree.SubElement(nic, "model", type=spec.model)
    if spec.filter_name is not None:
        etree.SubElement(nic, "filterref", filter=spec.filter_name)
    if spec.mtu is not None:
        etree.SubElement(nic, "mtu", size=str(spec.mtu))


def _console(devices: Element, path: str) -> None:
    serial = etree.SubElement(devices, "serial", type="file")
    # Appended, so that a restart keeps what the last boot said; readers remember their offset.
    etree.SubElement(serial, "source", path=_absolute(path), append="on")
    etree.SubElement(serial, "target", port="0")


def _screen(devices: Element, has_vnc: bool) -> None:
    video = etree.SubElement(devices, "video")
    if not has_vnc:
        etree.SubElement(video, "model", type="none")
        return
    etree.SubElement(video, "model", type="vga", vram="16384", heads="1", primary="yes")
    graphics = etree.Element("graphics", type="vnc", port="-1", autoport="yes")
    etree.SubElement(graphics, "listen", type="address", address="127.0.0.1")
    video.addprevious(graphics)


def metadata_of(fragment: str) -> tuple[int, UUID] | None:
    """Return (epoch, operation id) of our metadata element; None when it is not readable."""
    try:
        element = _parse(fragment)
    except etree.XMLSyntaxError:
        return None
    # Libvirt hands the element out with its prefix; its namespace is what counts.
    return _read_guest(element)


def parse_metadata(xml: str) -> tuple[int, UUID] | None:
    """Return (epoch, operation id) from a domain's XML; None for a domain that is not ours."""
    try:
        element = _parse(xml).find(f"metadata/{_GUEST}")
    except etree.XMLSyntaxError:
        return None
    return None if element is None else _read_guest(element)


def _read_guest(element: Element) -> tuple[int, UUID] | None:
    try:
        return int(element.get("epoch", "")), UUID(element.get("operation", ""))
    except ValueError:
        return None


def for_destination(
    live_xml: str,
    *,
    epoch: int,
    operation_id: UUID,
    console_path: str | None = None,
    disk_sources: Mapping[str, str] | None = None,
    backing_sources: Mapping[str, str] | None = None,
) -> str:
    """Return a guest's XML as its destination must have it.

    Only the host's side and our metadata change; what the guest sees (addresses, MACs, models)
    stays, or libvirt's ABI check refuses the migration.

    Args:
        live_xml: ``dump_xml(migratable=True)`` of the source (or its inactive XML for the
            persistent definition).
        epoch: the destination's epoch.
        operation_id: the operation that migrates.
        console_path: where the destination writes the serial console; None keeps the path.
        disk_sources: guest device → path, for those disks that have another path there.
        backing_sources: old → new path, for backing files that have another path there.
    """
    root = _parse(live_xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        root.insert(0, metadata)
    for old in metadata.findall(_GUEST):
        metadata.remove(old)
    metadata.append(_guest_element(epoch, operation_id))
    if console_path is not None:
        for source in root.iterfind("devices/serial[@type='file']/source"):
            source.set("path", _absolute(console_path))
        for source in root.iterfind("devices/console[@type='file']/source"):
            source.set("path", _absolute(console_path))
    for disk in root.iterfind("devices/disk"):
        _move_disk(disk, disk_sources or {}, backing_sources or {})
    return _to_text(root)


def _move_disk(
    disk: Element, disk_sources: Mapping[str, str], backing_sources: Mapping[str, str]
) -> None:
    target = disk.find("target")
    source = disk.find("source")
    path = disk_sources.get(target.get("dev", "")) if target is not None else None
    if path is not None and source is not None:
        source.set("file", _absolute(path))
    for backing in disk.iterfind(".//backingStore/source"):
        old = backing.get("file", "")
        if old in backing_sources:
            backing.set("file", _absolute(backing_sources[old]))


@dataclass(frozen=True, kw_only=True)
class CpuDemand:
    """What a domain's XML demands of its host's CPU; ``cpu_xml`` None for nothing particular."""

    domain_type: str
    arch: str | None
    emulator: str | None
    cpu_xml: str | None


def cpu_demand(domain_xml: str) -> CpuDemand:
    """Return the part of a domain's XML that the CPU comparison needs."""
    root = _parse(domain_xml)
    cpu, kind = root.find("cpu"), root.find("os/type")
    if cpu is not None:
        cpu.tail = None
    return CpuDemand(
        domain_type=root.get("type", "qemu"),
        arch=kind.get("arch") if kind is not None else None,
        emulator=root.findtext("devices/emulator"),
        cpu_xml=None if cpu is None else etree.tostring(cpu, encoding="unicode"),
    )


def is_agent_connected(live_xml: str) -> bool:
    """Return whether a running domain's XML shows that its guest opened the agent's channel."""
    found = _parse(live_xml).find(
        "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"
    )
    return found is not None


def digest_xml(xml: str) -> str:
    """Return the SHA-256 of a document's canonical form, so that formatting does not count."""
    canonical = etree.tostring(_parse(xml, strip=True), method="c14n2")
    return hashlib.sha256(canonical).hexdigest()


def _parse(xml: str, *, strip: bool = False) -> Element:
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_blank_text=strip,
    )
    return etree.fromstring(xml.encode(), parser)


def _guest_element(epoch: int, operation_id: UUID) -> Element:
    element = etree.Element(_GUEST, nsmap={METADATA_KEY: METADATA_URI})
    element.set("epoch", str(epoch))
    element.set("operation", str(operation_id))
    return element


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = etree.SubElement(parent, tag, **attributes)
    element.text = text
    return element


def _absolute(path: str) -> str:
    if not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"the path {path!r} is not absolute and plain")
    return path


def _to_text(root: Element) -> str:
    etree.indent(root)
    return etree.tostring(root, encoding="unicode") + "\n"
