"""What a lab is: the facts written to lab.json and handed to every caller."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.services import Endpoints


@dataclass(frozen=True)
class Images:
    """The lab's guest images, readable at the same path outside and on every host.

    Attributes:
        kernel: the Linux guest's kernel by itself, for direct boot.
        ramdisk: its initramfs, likewise.
    """

    directory: str
    guest: str
    guest_sha256: str
    boot: str
    boot_sha256: str
    kernel: str
    ramdisk: str


@dataclass(frozen=True)
class HostFacts:
    """One host as others see it.

    Attributes:
        holder_pid: a process (seen from outside the lab) in the host's namespaces.
    """

    name: str
    address: str
    uuid: str
    holder_pid: int
    libvirt_uri: str


@dataclass(frozen=True)
class Description:
    """A lab's settings and addresses.

    Attributes:
        switch_pid: a process (seen from outside the lab) in the network namespace of the switch,
            where the bridge ``guest`` joins the guests of all hosts.
    """

    directory: str
    subnet: int
    endpoints: Endpoints
    images: Images
    hosts: tuple[HostFacts, ...]
    workers: bool
    flower: bool
    extra_env: dict[str, str]
    gluster: bool = False
    switch_pid: int = 0

    def host(self, name: str) -> HostFacts:
        """Return the host of this name."""
        return next(host for host in self.hosts if host.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Description:
        """Read the facts from JSON."""
        return cls(
            directory=data["directory"],
            subnet=data["subnet"],
            endpoints=Endpoints(**data["endpoints"]),
            images=Images(**data["images"]),
            hosts=tuple(HostFacts(**host) for host in data["hosts"]),
            workers=data["workers"],
            flower=data["flower"],
            extra_env=data["extra_env"],
            gluster=data.get("gluster", False),
            switch_pid=data["switch_pid"],
        )


def load(path: Path) -> Description | None:
    """Read the previous run's description; None when there is none that this version reads."""
    try:
        return Description.from_dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, description: Description) -> None:
    """Write the description; it holds the database's password."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(description.as_dict(), indent=2) + "\n")
