"""What bare libvirt-python does with the XML of one of Innkeeper's own guests."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from uuid import uuid4

import libvirt
from lxml import etree

from lab.handle import Lab
from lab.show.measure import timed

_MIGRATE = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    | libvirt.VIR_MIGRATE_UNSAFE
)


def twin_xml(xml: str, name: str) -> str:
    """Return a guest's XML under another name and UUID, with files of its own."""
    tree = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False))
    old_uuid, new_uuid = tree.findtext("uuid") or "", str(uuid4())
    for element, text in (("name", name), ("uuid", new_uuid)):
        found = tree.find(element)
        if found is not None:
            found.text = text
    for metadata in tree.findall("metadata"):
        tree.remove(metadata)
    text = etree.tostring(tree, encoding="unicode")
    return text.replace(old_uuid, new_uuid)


class BareSpawn:
    """Defines and starts twins of a guest; the overlay is made beforehand, outside the time."""

    def __init__(self, lab: Lab, host: str, *, template: str) -> None:
        self._lab, self._host = lab, host
        self._conn = libvirt.open(lab.libvirt_uri(host))
        domain = self._conn.lookupByName(template)
        self._xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    def run_once(self, name: str) -> float:
        """Spawn and remove one twin; return the ms of define and create."""
        xml = twin_xml(self._xml, name)
        disk = make_overlay(self._lab, self._host, xml)

        def act() -> None:
            self._conn.defineXML(xml).create()

        elapsed_ms = timed(act)
        domain = self._conn.lookupByName(name)
        domain.destroy()
        domain.undefine()
        self._lab.exec(self._host, ["rm", "-r", str(Path(disk).parent)])
        return elapsed_ms


def make_overlay(lab: Lab, host: str, xml: str) -> str:
    """Make the overlay that a twin's XML names, on the base that it names; return its path."""
    tree = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False))
    disk = next(d for d in tree.findall("devices/disk") if d.get("device") == "disk")
    path = str(disk.find("source").get("file"))  # type: ignore[union-attr]
    base = str(disk.find("backingStore/source").get("file"))  # type: ignore[union-attr]
    base_format = str(disk.find("backingStore/format").get("type"))  # type: ignore[union-attr]
    lab.exec(host, ["mkdir", "-p", str(Path(path).parent)])
    lab.exec(
        host,
        [*("qemu-img", "create", "-q", "-f", "qcow2"), *("-F", base_format, "-b", base), path],
    )
    return path


class BareMigration:
    """Moves a twin of a guest to and fro with migrateToURI3 alone."""

    def __init__(self, lab: Lab, a: str, b: str, *, template: str) -> None:
        libvirt.virEventRegisterDefaultImpl()
        self._stop = threading.Event()
        threading.Thread(target=self._loop, name="bare-events", daemon=True).start()
        self._conns = {name: libvirt.open(lab.libvirt_uri(name)) for name in (a, b)}
        self._addresses = {name: lab.description.host(name).address for name in (a, b)}
        self._at, self._other = a, b
        self._downtime_ms: float | None = None
        self._completed = threading.Event()
        for conn in self._conns.values():
            conn.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._on_job, None
            )
        source = self._conns[a].lookupByName(template)
        xml = twin_xml(source.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), f"{template}-bare")
        self.name = f"{template}-bare"
        make_overlay(lab, a, xml)
        self._conns[a].defineXML(xml).create()

    def run_once(self, *, link_mib_s: int = 0) -> tuple[float, float]:
        """Move the twin to the other host; return total and downtime in ms.

        Args:
            link_mib_s: the most that may be sent, MiB/s; 0 for whatever the link carries.
        """
        domain = self._conns[self._at].lookupByName(self.name)
        address = self._addresses[self._other]
        self._completed.clear()
        params: dict[str, str | int] = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{address}"}
        if link_mib_s:
            params[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = link_mib_s
        started = time.perf_counter()
        domain.migrateToURI3(f"qemu+tcp://{address}/system", params, _MIGRATE)
        total_ms = (time.perf_counter() - started) * 1000
        if not self._completed.wait(5) or self._downtime_ms is None:
            raise RuntimeError("libvirt sent no figures of the migration")
        self._at, self._other = self._other, self._at
        return total_ms, self._downtime_ms

    def close(self) -> None:
        """Remove the twin."""
        domain = self._conns[self._at].lookupByName(self.name)
        domain.destroy()
        domain.undefine()
        self._stop.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            libvirt.virEventRunDefaultImpl()

    def _on_job(self, _conn: object, _dom: object, params: dict[str, int], _data: object) -> None:
        self._downtime_ms = float(params.get("downtime", 0))
        self._completed.set()
