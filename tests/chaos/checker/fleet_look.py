"""What the hosts hold: domains by virsh, QEMU processes by /proc, files by the file system."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

from lab.handle import Lab
from tests.chaos.checker.files_look import SeenFile, find_id, list_files

GUEST = "{https://innkeeper.dev/xmlns/1}guest"
LISTINGS = 3
EXECUTING = frozenset({"running", "idle", "in shutdown"})
OFF = frozenset({"shut off", "crashed"})


@dataclass(frozen=True, slots=True)
class SeenDomain:
    """A domain as virsh on its host shows it.

    Args:
        state: in virsh's words.
        epoch: what our metadata says; None when there is none.
        files: every file that its XML names, as the host sees it.
    """

    host: str
    id: UUID
    name: str
    state: str
    epoch: int | None
    files: frozenset[str]

    @property
    def is_executing(self) -> bool:
        """Whether its processors run."""
        return self.state in EXECUTING


@dataclass(frozen=True, slots=True)
class SeenQemu:
    """A QEMU process in a host's namespaces; its id is None when its command line has none."""

    host: str
    pid: int
    id: UUID | None


@dataclass(frozen=True)
class Fleet:
    """All hosts, looked at one after the other."""

    domains: list[SeenDomain]
    qemus: list[SeenQemu]
    files: list[SeenFile]

    def domains_of(self, instance_id: UUID) -> list[SeenDomain]:
        """Return a guest's domains on all hosts."""
        return [domain for domain in self.domains if domain.id == instance_id]


def look_at_fleet(lab: Lab) -> Fleet:
    """Look at all hosts; their libvirtds must be alive."""
    # Processes first: a guest that ends in between then has a domain and no process, which is fine.
    qemus = [qemu for host in lab.hosts for qemu in _list_qemus(lab, host)]
    domains = [domain for host in lab.hosts for domain in _list_domains(lab, host)]
    return Fleet(domains, qemus, list(list_files(lab)))


def _list_domains(lab: Lab, host: str) -> list[SeenDomain]:
    for _ in range(LISTINGS):
        ids = _virsh(lab, host, "list --all --uuid").split()
        script = "; ".join(f"domstate {one}; dumpxml {one}" for one in ids)
        shown = _virsh(lab, host, script) if ids else ""
        found = re.findall(r"^([a-z ]+)\n\s*(<domain .*?^</domain>)", shown, re.DOTALL | re.M)
        if len(found) == len(ids):
            break
        # One has come or gone between the two questions.
    return [_read_domain(host, state, xml) for state, xml in found]


def _virsh(lab: Lab, host: str, script: str) -> str:
    command = lab.host_command(host, ["env", "LC_ALL=C", "virsh", "-q", script])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # A domain that is gone by now is not an error of the look; a libvirtd that is away is.
    if done.returncode != 0 and "failed to connect" in done.stderr:
        raise ConnectionError(f"virsh on {host}: {done.stderr.strip()}")
    return done.stdout


def _read_domain(host: str, state: str, xml: str) -> SeenDomain:
    root = ElementTree.fromstring(xml)
    guest = root.find(f"metadata/{GUEST}")
    epoch = guest.get("epoch") if guest is not None else None
    return SeenDomain(
        host,
        UUID(root.findtext("uuid")),
        root.findtext("name") or "",
        state.strip(),
        int(epoch) if epoch is not None else None,
        frozenset(source.get("file", "") for source in root.iter("source")),
    )


def _list_qemus(lab: Lab, host: str) -> Iterator[SeenQemu]:
    """Hosts share one PID namespace, so a process is a host's by its network namespace."""
    network = os.readlink(f"/proc/{lab.description.host(host).holder_pid}/ns/net")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"qemu-system" not in words[0] or os.readlink(entry / "ns/net") != network:
                continue
            ids = [after for word, after in pairwise(words) if word == b"-uuid"]
            yield SeenQemu(host, int(entry.name), find_id(ids[0].decode()) if ids else None)
