"""A guest's domain XML, rendered from its typed description. Pure.

Text and attributes go through lxml, which escapes them; nothing is pasted. What is read from
libvirt's XML, or changed in it, is in virt.domain_reading and offered here as well.
"""

from lxml import etree

from innkeeper.errors import InvalidRequest
from virt.domain_reading import (
    METADATA_URI,
    CpuDemand,
    Element,
    absolute,
    cpu_demand,
    digest_xml,
    for_destination,
    guest_element,
    is_agent_connected,
    metadata_of,
    parse_metadata,
    to_text,
)
from virt.domain_spec import CdromSpec, DiskSpec, DomainSpec, NicSpec

__all__ = [
    "METADATA_URI",
    "CdromSpec",
    "CpuDemand",
    "DiskSpec",
    "DomainSpec",
    "NicSpec",
    "cpu_demand",
    "digest_xml",
    "for_destination",
    "is_agent_connected",
    "metadata_of",
    "parse_metadata",
    "render_domain",
]


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
    metadata.append(guest_element(spec.epoch, spec.operation_id))
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
    return to_text(root)


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
    etree.SubElement(disk, "source", file=absolute(spec.path))
    # Always spelled out to its end: libvirt must never look into a file a guest has written.
    backing = etree.SubElement(disk, "backingStore")
    if spec.backing_path is not None:
        backing.set("type", "file")
        etree.SubElement(backing, "format", type=spec.backing_format)
        etree.SubElement(backing, "source", file=absolute(spec.backing_path))
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
        etree.SubElement(disk, "source", file=absolute(spec.path))
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
    etree.SubElement(serial, "source", path=absolute(path), append="on")
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


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = etree.SubElement(parent, tag, attributes)
    element.text = text
    return element
