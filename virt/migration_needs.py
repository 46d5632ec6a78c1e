"""What a guest's XML says about moving it: what its next host must have, what cannot move. Pure."""

from dataclasses import dataclass

from virt.domain_reading import (
    CpuDemand,
    Element,
    cpu_demand,
    host_demand,
    list_bridges,
    parse,
)


@dataclass(frozen=True, kw_only=True)
class SecretNeed:
    """A secret of libvirt that a disk names, by its UUID or by its usage."""

    kind: str
    uuid: str | None
    usage: str | None


@dataclass(frozen=True, kw_only=True)
class DiskFiles:
    """The files of a disk that the guest writes to, the top layer first.

    Args:
        target: the guest's device.
        paths: files; what is no file stands as ``network:…`` and the like.
    """

    target: str
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MigrationNeeds:
    """What a destination must have, and what keeps the guest where it is.

    Args:
        machine: the machine type.
        firmware_paths: files that its firmware is made of.
        cpu: the CPU, for a comparison.
        bridges: bridges of its cards.
        filters: nwfilters of its cards.
        secrets: secrets of its disks.
        disks: disks that it writes to.
        bound_devices: devices that cannot leave their host, in words.
    """

    machine: str
    firmware_paths: tuple[str, ...]
    cpu: CpuDemand
    bridges: tuple[str, ...]
    filters: tuple[str, ...]
    secrets: tuple[SecretNeed, ...]
    disks: tuple[DiskFiles, ...]
    bound_devices: tuple[str, ...]


def read_needs(live_xml: str) -> MigrationNeeds:
    """Return what moving a guest takes.

    Args:
        live_xml: of the running domain, its migratable form.
    """
    root = parse(live_xml)
    machine = host_demand(live_xml)
    filters = (ref.get("filter", "") for ref in root.iterfind("devices/interface/filterref"))
    return MigrationNeeds(
        machine=machine.machine,
        firmware_paths=machine.firmware_paths,
        cpu=cpu_demand(live_xml),
        bridges=list_bridges(live_xml),
        filters=tuple(dict.fromkeys(filter(None, filters))),
        secrets=tuple(_list_secrets(root)),
        disks=tuple(_list_disks(root)),
        bound_devices=tuple(_list_bound(root)),
    )


def _list_secrets(root: Element) -> list[SecretNeed]:
    found = [
        SecretNeed(kind=secret.get("type", ""), uuid=secret.get("uuid"), usage=secret.get("usage"))
        for secret in root.iterfind("devices/disk//secret")
    ]
    return list(dict.fromkeys(found))


def _list_disks(root: Element) -> list[DiskFiles]:
    disks = []
    for disk in root.iterfind("devices/disk[@device='disk']"):
        target = disk.find("target")
        if disk.find("readonly") is not None or target is None:
            continue
        disks.append(DiskFiles(target=target.get("dev", ""), paths=tuple(_walk(disk))))
    return disks


def _walk(layer: Element | None) -> list[str]:
    paths = []
    while layer is not None:
        source = layer.find("source")
        if source is not None:
            path = source.get("file") or source.get("dev")
            paths.append(path or f"{layer.get('type')}:{source.get('name', '')}")
        layer = layer.find("backingStore")
    return paths


def _list_bound(root: Element) -> list[str]:
    bound = []
    for device in root.iterfind("devices/hostdev"):
        bound.append(f"host device of type {device.get('type') or device.get('mode')}")
    for card in root.iterfind("devices/interface"):
        if card.get("type") in ("hostdev", "vdpa"):
            bound.append(f"network card of type {card.get('type')}")
    for share in root.iterfind("devices/filesystem"):
        driver = share.find("driver")
        kind = "9p" if driver is None else driver.get("type", "9p")
        bound.append(f"directory of the host, shared by {kind}")
    for memory in root.iterfind("devices/shmem"):
        bound.append(f"shared memory {memory.get('name')}")
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if disk.find("transient") is not None and target is not None:
            bound.append(f"transient disk {target.get('dev')}")
    for timer in root.iterfind("cpu/feature[@name='invtsc'][@policy='require']"):
        if not root.findall("clock/timer[@name='tsc'][@frequency]"):
            bound.append(f"CPU feature {timer.get('name')} without a fixed TSC frequency")
    return bound
