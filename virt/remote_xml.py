"""The part of a domain's XML that says where a disk's bytes come from. Pure."""

from dataclasses import dataclass

from lxml import etree

from virt.domain_reading import Element, absolute, to_text


@dataclass(frozen=True, kw_only=True)
class DiskLook:
    """Where a domain's disk is now.

    Args:
        path: the file of its top layer.
        has_remote_backing: whether a server stands below it.
        mirror_path: the file that it is being copied to; None for no copy.
        is_mirror_ready: whether the copy is complete and kept equal.
    """

    path: str
    has_remote_backing: bool
    mirror_path: str | None = None
    is_mirror_ready: bool = False


def render_local_disk(path: str, backing_path: str) -> str:
    """Return the XML of an overlay over a cached raw image, as a copy's destination."""
    disk = etree.Element("disk", type="file", device="disk")
    etree.SubElement(disk, "driver", name="qemu", type="qcow2", cache="none")
    etree.SubElement(disk, "source", file=absolute(path))
    disk.append(_local_backing(backing_path))
    return to_text(disk)


def with_local_disk(xml: str, target: str, *, path: str, backing_path: str) -> str:
    """Return a domain's XML with one disk as an overlay over a cached raw image.

    Args:
        xml: the domain's.
        target: the guest's device, e.g. "vda".
        path: the overlay.
        backing_path: the cached image.

    Raises:
        ValueError: the domain has no such disk.
    """
    root = _parse(xml)
    disk = _find_disk(root, target)
    source, backing = disk.find("source"), disk.find("backingStore")
    if source is None:
        raise ValueError(f"the disk {target} has no source")
    source.attrib.clear()
    source.set("file", absolute(path))
    if backing is not None:
        disk.remove(backing)
    source.addnext(_local_backing(backing_path))
    return to_text(root)


def look_at_disk(xml: str, target: str) -> DiskLook:
    """Return what a domain's XML says of a disk.

    Raises:
        ValueError: the domain has no such disk.
    """
    disk = _find_disk(_parse(xml), target)
    source, mirror = disk.find("source"), disk.find("mirror")
    mirror_source = None if mirror is None else mirror.find("source")
    return DiskLook(
        path="" if source is None else source.get("file", ""),
        has_remote_backing=disk.find("backingStore[@type='network']") is not None,
        mirror_path=None
        if mirror is None
        else mirror.get("file") or (mirror_source.get("file") if mirror_source is not None else ""),
        is_mirror_ready=mirror is not None and mirror.get("ready") == "yes",
    )


def _local_backing(path: str) -> Element:
    backing = etree.Element("backingStore", type="file")
    etree.SubElement(backing, "format", type="raw")
    etree.SubElement(backing, "source", file=absolute(path))
    etree.SubElement(backing, "backingStore")
    return backing


def _find_disk(root: Element, target: str) -> Element:
    for disk in root.iterfind("devices/disk"):
        found = disk.find("target")
        if found is not None and found.get("dev") == target:
            return disk
    raise ValueError(f"the domain has no disk {target}")


def _parse(xml: str) -> Element:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    return etree.fromstring(xml.encode(), parser)
