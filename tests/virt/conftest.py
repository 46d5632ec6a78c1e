"""Two real libvirtd without workers, and guests that clean up after themselves."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from lab.handle import Lab
from tests.virt.boot_sectors import write_image
from tests.waiting import PATIENCE_S
from virt.console import tail
from virt.disks import create_overlay
from virt.domain_xml import DiskSpec, DomainSpec, render_domain
from virt.events import GuestEvent
from virt.hypervisor import Hypervisor

GIB = 1 << 30


@pytest.fixture(scope="session")
def bare_lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="innkeeper-virt-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        with Lab.up(Path(directory), hosts=2, workers=False, owner_pid=os.getpid()) as running:
            yield running


@pytest.fixture(scope="session")
def workdir() -> Iterator[Path]:
    """A directory both hosts see at the same path."""
    with tempfile.TemporaryDirectory(prefix="innkeeper-disks-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@dataclass
class Host:
    """A connected hypervisor with what it told."""

    hypervisor: Hypervisor
    address: str
    events: list[GuestEvent] = field(default_factory=list)
    connected: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def connect(lab: Lab, name: str, **arguments: Any) -> Host:
    told: dict[str, list[Any]] = {"events": [], "connected": [], "lost": []}
    hypervisor = Hypervisor(
        lab.libvirt_uri(name),
        name=name,
        on_event=told["events"].append,
        on_connected=lambda: told["connected"].append(1),
        on_lost=told["lost"].append,
        **arguments,
    )
    hypervisor.start()
    assert hypervisor.wait_connected(PATIENCE_S)
    return Host(hypervisor, lab.description.host(name).address, **told)


@pytest.fixture
def src(bare_lab: Lab) -> Iterator[Host]:
    bare_lab.start("libvirtd:hv-a")
    host = connect(bare_lab, "hv-a")
    yield host
    host.hypervisor.close()


@pytest.fixture
def dst(bare_lab: Lab) -> Iterator[Host]:
    bare_lab.start("libvirtd:hv-b")
    host = connect(bare_lab, "hv-b")
    yield host
    host.hypervisor.close()


@dataclass
class Guest:
    """A described guest with its files; defined and started by the test."""

    spec: DomainSpec
    directory: Path
    image: Path

    @property
    def id(self) -> UUID:
        return self.spec.instance_id

    @property
    def xml(self) -> str:
        return render_domain(self.spec)

    @property
    def console(self) -> Path:
        return Path(self.spec.console_log_path or "")

    def tail(self) -> str:
        return tail(self.console)

    def overlay(self, name: str) -> Path:
        """Make another empty disk over the same image, as a migration's destination has it."""
        path = self.directory / f"{self.id}-{name}.qcow2"
        create_overlay(path, backing_path=self.image, backing_format="qcow2", size_bytes=GIB // 8)
        return path


MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest(bare_lab: Lab, workdir: Path) -> Iterator[MakeGuest]:
    """Describe a guest on the boot-sector image, on Linux, or on a sector of the test's own."""
    made: list[Guest] = []

    def make(
        *, linux: bool = False, epoch: int = 1, sector: bytes | None = None, **changes: Any
    ) -> Guest:
        images = bare_lab.description.images
        image = Path(images.guest if linux else images.boot)
        instance_id = uuid4()
        disk = workdir / f"{instance_id}.qcow2"
        if sector is None:
            create_overlay(disk, backing_path=image, backing_format="qcow2", size_bytes=GIB // 8)
            disks = (DiskSpec(target="vda", path=str(disk), backing_path=str(image)),)
        else:
            disk = write_image(sector, disk.with_suffix(".raw"))
            disks = (DiskSpec(target="vda", path=str(disk), format="raw"),)
        spec = DomainSpec(
            **{
                "instance_id": instance_id,
                "name": f"guest-{str(instance_id)[:8]}",
                "epoch": epoch,
                "operation_id": uuid4(),
                "vcpus": 1,
                "memory_mib": 192 if linux else 32,
                "machine": "pc-i440fx-7.2",
                "disks": disks,
                "console_log_path": str(workdir / f"{instance_id}.log"),
                **changes,
            }
        )
        made.append(Guest(spec, workdir, image))
        return made[-1]

    yield make
    for name in bare_lab.hosts:
        # A test that failed may have left it dead, and nobody else knows of these guests.
        bare_lab.start(f"libvirtd:{name}")
        for guest in made:
            for verb in ("destroy", "undefine"):
                subprocess.run(
                    ["virsh", "-q", "-c", bare_lab.libvirt_uri(name), verb, str(guest.id)],
                    capture_output=True,
                    timeout=30,
                )
