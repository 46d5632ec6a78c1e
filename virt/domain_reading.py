"""Domain XML that libvirt gave us: read as far as we must, and changed for a destination. Pure.

It is parsed without entities, DTDs or network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import UUID

from lxml import etree

METADATA_URI = "https://innkeeper.dev/xmlns/1"
METADATA_KEY = "innkeeper"
_GUEST = f"{{{METADATA_URI}}}guest"
_ENTRY = f"{{{METADATA_URI}}}entry"

Element = etree._Element


def metadata_of(fragment: str) -> tuple[int, UUID] | None:
    """Return (epoch, operation id) of our metadata element; None when it is not readable."""
    try:
        element = parse(fragment)
    except etree.XMLSyntaxError:
        return None
    # Libvirt hands the element out with its prefix; its namespace is what counts.
    return _read_guest(element)


def parse_metadata(xml: str) -> tuple[int, UUID] | None:
    """Return (epoch, operation id) from a domain's XML; None for a domain that is not ours."""
    try:
        element = parse(xml).find(f"metadata/{_GUEST}")
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
    root = parse(live_xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        root.insert(0, metadata)
    _mark(metadata, epoch, operation_id)
    if console_path is not None:
        for source in root.iterfind("devices/serial[@type='file']/source"):
            source.set("path", absolute(console_path))
        for source in root.iterfind("devices/console[@type='file']/source"):
            source.set("path", absolute(console_path))
    for disk in root.iterfind("devices/disk"):
        _move_disk(disk, disk_sources or {}, backing_sources or {})
    return to_text(root)


def _mark(metadata: Element, epoch: int, operation_id: UUID) -> None:
    """Say anew whose the domain is, and keep what the guest's owner has said."""
    fresh = guest_element(epoch, operation_id)
    for old in metadata.findall(_GUEST):
        fresh.extend(old)
        metadata.remove(old)
    metadata.append(fresh)


def _move_disk(
    disk: Element, disk_sources: Mapping[str, str], backing_sources: Mapping[str, str]
) -> None:
    target = disk.find("target")
    source = disk.find("source")
    path = disk_sources.get(target.get("dev", "")) if target is not None else None
    if path is not None and source is not None:
        source.set("file", absolute(path))
    for backing in disk.iterfind(".//backingStore/source"):
        old = backing.get("file", "")
        if old in backing_sources:
            backing.set("file", absolute(backing_sources[old]))


@dataclass(frozen=True, kw_only=True)
class CpuDemand:
    """What a domain's XML demands of its host's CPU; ``cpu_xml`` None for nothing particular."""

    domain_type: str
    arch: str | None
    emulator: str | None
    cpu_xml: str | None


def cpu_demand(domain_xml: str) -> CpuDemand:
    """Return the part of a domain's XML that the CPU comparison needs."""
    root = parse(domain_xml)
    cpu, kind = root.find("cpu"), root.find("os/type")
    if cpu is not None and cpu.get("mode") is None and cpu.find("model") is None:
        # A topology alone asks nothing of the host's CPU.
        cpu = None
    if cpu is not None:
        cpu.tail = None
    return CpuDemand(
        domain_type=root.get("type", "qemu"),
        arch=kind.get("arch") if kind is not None else None,
        emulator=root.findtext("devices/emulator"),
        cpu_xml=None if cpu is None else etree.tostring(cpu, encoding="unicode"),
    )


@dataclass(frozen=True, kw_only=True)
class HostDemand:
    """What a domain's XML demands of its host beside CPU, disks and networks.

    Args:
        machine: its machine type.
        firmware_paths: files of the host that its firmware is made of; empty for BIOS.
    """

    machine: str
    firmware_paths: tuple[str, ...]


def host_demand(domain_xml: str) -> HostDemand:
    """Return what a guest cannot do without on a host that is to take it."""
    os_ = parse(domain_xml).find("os")
    if os_ is None:
        return HostDemand(machine="", firmware_paths=())
    kind, nvram = os_.find("type"), os_.find("nvram")
    template = "" if nvram is None else nvram.get("template", "")
    return HostDemand(
        machine="" if kind is None else kind.get("machine", ""),
        firmware_paths=tuple(filter(None, (os_.findtext("loader"), template))),
    )


def is_agent_connected(live_xml: str) -> bool:
    """Return whether a running domain's XML shows that its guest opened the agent's channel."""
    found = parse(live_xml).find(
        "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']"
    )
    return found is not None


@dataclass(frozen=True, kw_only=True)
class GuestPort:
    """The host's end of a running guest's network card.

    Args:
        name: the tap device.
        bridge: the bridge that it shall be on.
        mac: the card's address.
        filter_name: the nwfilter that shall be in force on it; None for none.
    """

    name: str
    bridge: str
    mac: str
    filter_name: str | None


def list_ports(live_xml: str) -> tuple[GuestPort, ...]:
    """Return the ports of a running domain's cards that are on bridges."""
    ports = []
    for nic in parse(live_xml).iterfind("devices/interface[@type='bridge']"):
        filterref = nic.find("filterref")
        ports.append(
            GuestPort(
                name=_attribute(nic, "target", "dev"),
                bridge=_attribute(nic, "source", "bridge"),
                mac=_attribute(nic, "mac", "address"),
                filter_name=None if filterref is None else filterref.get("filter"),
            )
        )
    return tuple(ports)


def learns_address(xml: str) -> bool:
    """Return whether a domain has a filtered card whose address libvirt has to learn."""
    if "<filterref" not in xml:
        return False
    filters = parse(xml).iterfind("devices/interface/filterref")
    return any(each.find("parameter[@name='IP']") is None for each in filters)


def list_bridges(xml: str) -> tuple[str, ...]:
    """Return the bridges that a domain's cards are on, each once; none for no document."""
    if "<interface" not in xml:
        return ()
    nics = parse(xml).iterfind("devices/interface[@type='bridge']")
    return tuple(dict.fromkeys(_attribute(nic, "source", "bridge") for nic in nics))


def _attribute(parent: Element, tag: str, name: str) -> str:
    element = parent.find(tag)
    return "" if element is None else element.get(name, "")


_FREE_ATTRIBUTES = frozenset(
    {"file", "path", "uuid", "epoch", "operation", "address", "bridge", "key", "template"}
)


def shape_of(xml: str) -> str:
    """Return a digest of a document's elements and attributes, but for what names a guest's own.

    Two documents of one shape differ only in element texts and in the attributes of
    ``_FREE_ATTRIBUTES``, whose values are free text to libvirt's schema.

    Raises:
        ValueError: it is not XML.
    """
    digest = hashlib.sha256()
    try:
        elements = parse(xml).iter(etree.Element)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"not XML: {error}") from None
    for element in elements:
        kept = sorted(
            (str(k), "" if k in _FREE_ATTRIBUTES else str(v)) for k, v in element.attrib.items()
        )
        digest.update(repr((element.tag, kept)).encode())
    return digest.hexdigest()


def digest_xml(xml: str) -> str:
    """Return the SHA-256 of a document's canonical form, so that formatting does not count."""
    canonical = etree.tostring(parse(xml, strip=True), method="c14n2")
    return hashlib.sha256(canonical).hexdigest()


def parse(xml: str, *, strip: bool = False) -> Element:
    """Parse a document of libvirt's, without entities, DTDs or network."""
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_blank_text=strip,
    )
    return etree.fromstring(xml.encode(), parser)


def guest_element(
    epoch: int, operation_id: UUID, entries: tuple[tuple[str, str], ...] = ()
) -> Element:
    """Return our metadata: who wrote the domain, for which epoch of its record, the owner's words.

    Args:
        epoch: the record's.
        operation_id: the operation that defines the domain.
        entries: the owner's keys and values.
    """
    element = etree.Element(_GUEST, nsmap={METADATA_KEY: METADATA_URI})
    element.set("epoch", str(epoch))
    element.set("operation", str(operation_id))
    for key, value in entries:
        etree.SubElement(element, _ENTRY, key=key).text = value
    return element


def absolute(path: str) -> str:
    """Return a path for XML as it is.

    Raises:
        ValueError: it is relative or climbs.
    """
    if not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"the path {path!r} is not absolute and plain")
    return path


def to_text(root: Element) -> str:
    """Return the document as indented text."""
    etree.indent(root)
    return etree.tostring(root, encoding="unicode") + "\n"
