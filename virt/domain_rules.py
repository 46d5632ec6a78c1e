"""What a domain's description may not say, because no machine could have it. Pure."""

import re
from collections import Counter
from collections.abc import Iterator

from virt.domain_spec import CdromSpec, DiskSpec, DomainSpec, NicSpec, RemoteSource

TARGET_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
IDE_UNITS = 4

Problem = tuple[str, str]


def is_q35(machine: str) -> bool:
    """Return whether a machine type is of the PCI Express kind, which has no IDE."""
    return machine.startswith("pc-q35-")


def problems_of(spec: DomainSpec) -> list[Problem]:
    """Return (where, what) of everything that is wrong; nothing for a description that is right."""
    return [
        *_machine_problems(spec),
        *_boot_problems(spec),
        *_target_problems(spec),
        *(problem for disk in spec.disks for problem in _disk_problems(disk)),
        *_nic_problems(spec),
    ]


def _machine_problems(spec: DomainSpec) -> Iterator[Problem]:
    if re.fullmatch(r"pc-(i440fx|q35)-[0-9]+\.[0-9]+(\.[0-9]+)?", spec.machine) is None:
        yield "machine", f"{spec.machine!r} is not a versioned pc-i440fx or pc-q35 machine type"
    topology = spec.topology
    if topology is not None:
        product = topology.sockets * topology.cores * topology.threads
        if product != spec.vcpus:
            yield "topology", f"gives {product} vCPUs, not {spec.vcpus}"


def _boot_problems(spec: DomainSpec) -> Iterator[Problem]:
    devices: tuple[DiskSpec | CdromSpec | NicSpec, ...] = (*spec.disks, *spec.cdroms, *spec.nics)
    orders = Counter(device.boot_order for device in devices if device.boot_order is not None)
    for order, number in orders.items():
        if number > 1:
            yield "boot_order", f"{number} devices have the place {order}"
        if order < 1:
            yield "boot_order", f"{order} is not a place; the first is 1"


def _target_problems(spec: DomainSpec) -> Iterator[Problem]:
    devices: tuple[DiskSpec | CdromSpec, ...] = (*spec.disks, *spec.cdroms)
    for target, number in Counter(device.target for device in devices).items():
        if number > 1:
            yield "target", f"{number} disks have the name {target}"
    for device in devices:
        if re.fullmatch(TARGET_PREFIX[device.bus] + "[a-z]{1,2}", device.target) is None:
            yield "target", f"{device.target!r} is no device of the bus {device.bus}"
    for cdrom in spec.cdroms:
        if cdrom.bus == "virtio":
            yield "bus", "virtio has no CD-ROMs; use sata"
    ide = sum(device.bus == "ide" for device in devices)
    if ide and is_q35(spec.machine):
        yield "bus", f"{spec.machine} has no IDE; use sata"
    if ide > IDE_UNITS:
        yield "bus", f"IDE has room for {IDE_UNITS} disks and CD-ROMs, not for {ide}"


def _disk_problems(disk: DiskSpec) -> Iterator[Problem]:
    if disk.io == "native" and disk.cache not in ("none", "directsync"):
        yield f"disks.{disk.target}.io", f"native needs a cache of none, not {disk.cache}"
    has_backing = disk.backing_path is not None or disk.remote_backing is not None
    if disk.format == "raw" and has_backing:
        yield f"disks.{disk.target}.format", "a raw file has nothing below it"
    if disk.backing_format == "raw" and disk.backing_path and disk.remote_backing:
        yield f"disks.{disk.target}.backing_format", "a raw file has nothing below it"
    if disk.copies_on_read and (disk.is_readonly or not has_backing):
        yield f"disks.{disk.target}.copies_on_read", "needs something below, and a file to write to"
    if disk.is_readonly and disk.bus in ("ide", "sata"):
        yield f"disks.{disk.target}.bus", f"a disk on {disk.bus} cannot be read-only"
    if disk.remote_backing is not None:
        for path, message in _remote_problems(disk.remote_backing):
            yield f"disks.{disk.target}.{path}", message


def _remote_problems(remote: RemoteSource) -> Iterator[Problem]:
    if (remote.host is None) == (remote.socket is None):
        yield "remote_backing.host", "needs a host or a socket, and not both"
    if remote.socket is not None and (remote.protocol != "nbd" or remote.port is not None):
        yield "remote_backing.socket", "is for nbd, and has no port"
    is_http = remote.protocol in ("http", "https")
    if not is_http and (remote.query or remote.readahead_bytes or remote.timeout_s):
        yield "remote_backing.protocol", "only http(s) has a query, readahead and a timeout"


def _nic_problems(spec: DomainSpec) -> Iterator[Problem]:
    for mac, number in Counter(nic.mac for nic in spec.nics).items():
        if number > 1:
            yield "nics", f"{number} have the MAC address {mac}"
    for nic in spec.nics:
        if nic.addresses and nic.filter_name is None:
            yield "nics", f"{nic.mac} has addresses, but no filter that would need them"
