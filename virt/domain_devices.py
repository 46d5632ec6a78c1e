"""The devices of a domain, rendered from their typed descriptions. Pure."""

from lxml import etree

from virt.domain_reading import Element, absolute
from virt.domain_spec import CdromSpec, DiskSpec, DomainSpec, NicSpec, RemoteSource

RNG_BYTES = 64 * 1024
RNG_PERIOD_MS = 1000
BALLOON_STATS_PERIOD_S = 10
# Libvirt puts the next one on another controller.
UNITS_OF_SCSI = 7


def add_devices(devices: Element, spec: DomainSpec) -> None:
    """Add a guest's devices to its ``<devices>``.

    Raises:
        ValueError: a value cannot stand in XML, or a path is not absolute.
    """
    for disk in spec.disks:
        _disk(devices, disk)
    for cdrom in spec.cdroms:
        _cdrom(devices, cdrom)
    _controllers(devices, spec)
    for nic in spec.nics:
        _nic(devices, nic)
    if spec.console_log_path is not None:
        _console(devices, spec.console_log_path)
    if spec.has_agent_channel:
        channel = etree.SubElement(devices, "channel", type="unix")
        etree.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _screen(devices, spec)
    if spec.watchdog is not None:
        etree.SubElement(devices, "watchdog", model="i6300esb", action=spec.watchdog)
    if spec.has_panic_device:
        etree.SubElement(devices, "panic", model="isa")
    balloon = etree.SubElement(devices, "memballoon", model="none")
    if spec.has_balloon:
        balloon.set("model", "virtio")
        etree.SubElement(balloon, "stats", period=str(BALLOON_STATS_PERIOD_S))
    if spec.has_rng:
        rng = etree.SubElement(devices, "rng", model="virtio")
        etree.SubElement(rng, "rate", bytes=str(RNG_BYTES), period=str(RNG_PERIOD_MS))
        etree.SubElement(rng, "backend", model="random").text = "/dev/urandom"


def _controllers(devices: Element, spec: DomainSpec) -> None:
    # No USB: an idle controller costs a guest without KVM a few per cent of a CPU.
    etree.SubElement(devices, "controller", type="usb", model="none")
    # Libvirt's own choice for SCSI is a controller of 1995 that today's kernels lack.
    devices_on_buses: tuple[DiskSpec | CdromSpec, ...] = (*spec.disks, *spec.cdroms)
    places = [_place(device.target) for device in devices_on_buses if device.bus == "scsi"]
    for index in range(max(places) // UNITS_OF_SCSI + 1 if places else 0):
        etree.SubElement(devices, "controller", type="scsi", index=str(index), model="virtio-scsi")


def _place(target: str) -> int:
    """Return the number of a device by its name: sda is 0, sdz 25, sdaa 26."""
    number = 0
    for letter in target[2:]:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def _disk(devices: Element, spec: DiskSpec) -> None:
    disk = etree.SubElement(devices, "disk", type="file", device="disk")
    driver = etree.SubElement(disk, "driver", name="qemu", type=spec.format, cache=spec.cache)
    for name, value in (
        ("error_policy", spec.error_policy),
        ("rerror_policy", spec.rerror_policy),
        ("io", spec.io),
        ("copy_on_read", "on" if spec.copies_on_read else None),
        ("discard", spec.discard),
        ("detect_zeroes", spec.detect_zeroes),
    ):
        if value is not None:
            driver.set(name, value)
    etree.SubElement(disk, "source", file=absolute(spec.path))
    # Always spelled out to its end: libvirt must never look into a file a guest has written.
    end = etree.SubElement(disk, "backingStore")
    if spec.backing_path is not None:
        end.set("type", "file")
        etree.SubElement(end, "format", type=spec.backing_format)
        etree.SubElement(end, "source", file=absolute(spec.backing_path))
        end = etree.SubElement(end, "backingStore")
    if spec.remote_backing is not None:
        end.set("type", "network")
        etree.SubElement(end, "format", type="raw")
        _remote(end, spec.remote_backing)
        etree.SubElement(end, "backingStore")
    etree.SubElement(disk, "target", dev=spec.target, bus=spec.bus)
    if spec.serial is not None:
        etree.SubElement(disk, "serial").text = spec.serial
    if spec.is_readonly:
        etree.SubElement(disk, "readonly")
    _boot_order(disk, spec.boot_order)


def _remote(backing: Element, spec: RemoteSource) -> None:
    source = etree.SubElement(backing, "source", protocol=spec.protocol)
    if spec.name or spec.protocol != "nbd":
        source.set("name", spec.name)
    if spec.query is not None:
        source.set("query", spec.query)
    host = etree.SubElement(source, "host")
    if spec.socket is not None:
        host.set("transport", "unix")
        host.set("socket", absolute(spec.socket))
    if spec.host is not None:
        host.set("name", spec.host)
    if spec.port is not None:
        host.set("port", str(spec.port))
    if spec.protocol == "https":
        etree.SubElement(source, "ssl", verify="yes" if spec.verifies_certificate else "no")
    if spec.readahead_bytes is not None:
        etree.SubElement(source, "readahead", size=str(spec.readahead_bytes))
    if spec.timeout_s is not None:
        etree.SubElement(source, "timeout", seconds=str(spec.timeout_s))


def _cdrom(devices: Element, spec: CdromSpec) -> None:
    disk = etree.SubElement(devices, "disk", type="file", device="cdrom")
    etree.SubElement(disk, "driver", name="qemu", type="raw")
    if spec.path is not None:
        etree.SubElement(disk, "source", file=absolute(spec.path))
    etree.SubElement(disk, "target", dev=spec.target, bus=spec.bus)
    etree.SubElement(disk, "readonly")
    _boot_order(disk, spec.boot_order)


def _nic(devices: Element, spec: NicSpec) -> None:
    nic = etree.SubElement(devices, "interface", type="bridge")
    etree.SubElement(nic, "mac", address=spec.mac)
    etree.SubElement(nic, "source", bridge=spec.bridge)
    etree.SubElement(nic, "model", type=spec.model)
    if spec.filter_name is not None:
        reference = etree.SubElement(nic, "filterref", filter=spec.filter_name)
        for address in spec.addresses:
            etree.SubElement(reference, "parameter", name="IP", value=address)
    if spec.mtu is not None:
        etree.SubElement(nic, "mtu", size=str(spec.mtu))
    _boot_order(nic, spec.boot_order)


def _boot_order(device: Element, order: int | None) -> None:
    if order is not None:
        etree.SubElement(device, "boot", order=str(order))


def _console(devices: Element, path: str) -> None:
    serial = etree.SubElement(devices, "serial", type="file")
    # Appended, so that a restart keeps what the last boot said; readers remember their offset.
    etree.SubElement(serial, "source", path=absolute(path), append="on")
    etree.SubElement(serial, "target", port="0")


def _screen(devices: Element, spec: DomainSpec) -> None:
    if spec.has_vnc and spec.video != "none":
        graphics = etree.SubElement(devices, "graphics", type="vnc", port="-1", autoport="yes")
        etree.SubElement(graphics, "listen", type="address", address="127.0.0.1")
    model = etree.SubElement(etree.SubElement(devices, "video"), "model", type=spec.video)
    if spec.video == "vga":
        model.set("vram", "16384")
    if spec.video != "none":
        model.set("heads", "1")
        model.set("primary", "yes")
