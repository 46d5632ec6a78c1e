"""One hypervisor host: its files, its namespaces, its libvirtd."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import libvirt_config
from lab.certificates import Authority, equip
from lab.layout import GLUSTER_MOUNT, HOST_MOUNTS, SHARED_MOUNT, Layout
from lab.namespaces import Namespaces, hold
from lab.processes import ProcessTable

_POOL_DIRECTORIES = ("instances", "images")


@dataclass(frozen=True)
class Host:
    """A running host (its namespaces); its processes come and go.

    Attributes:
        index: 0 for the first host; fixes its address.
    """

    name: str
    index: int
    address: str
    namespaces: Namespaces


def prepare_files(
    layout: Layout, name: str, address: str, hosts_file: str, authority: Authority
) -> None:
    """Bring a host's private directories into the state of a machine that has just booted."""
    base = layout.host(name)
    # /run of a machine is empty after boot; stale pid files would confuse libvirtd.
    shutil.rmtree(base / "run", ignore_errors=True)
    for directory in HOST_MOUNTS:
        (base / directory).mkdir(parents=True, exist_ok=True)
    # libvirt and QEMU expect /run/lock and /run/user to be there, like on any machine.
    for directory in ("lock", "user"):
        (base / "run" / directory).mkdir()
    for pool in (base / "innkeeper", layout.shared):
        for directory in _POOL_DIRECTORIES:
            (pool / directory).mkdir(parents=True, exist_ok=True)
    identity = libvirt_config.host_uuid(layout.root, name)
    libvirt_config.write_configuration(base / "etc-libvirt", identity, address)
    libvirt_config.create_state_directories(base / "lib-libvirt")
    equip(base / "etc-pki", authority, name, address)
    (base / "hosts").write_text(hosts_file)
    (base / "hostname").write_text(f"{name}\n")


def mount_commands(layout: Layout, name: str, images: Path) -> list[list[str]]:
    """Return what a host's mount namespace is built with."""
    base = layout.host(name)
    binds = {layout.shared: SHARED_MOUNT}
    binds |= {base / directory: target for directory, target in HOST_MOUNTS.items()}
    commands = [
        ["hostname", name],
        # The network interfaces in /sys are those of the namespace that mounted it.
        ["umount", "--lazy", "/sys"],
        ["mount", "-t", "sysfs", "sysfs", "/sys"],
        ["mount", "--bind", str(base / "hosts"), "/etc/hosts"],
        ["mount", "--bind", str(base / "hostname"), "/etc/hostname"],
        ["mount", "--bind", str(images), str(images)],
        ["mount", "-o", "remount,bind,ro", str(images)],
    ]
    commands += [["mount", "--bind", str(source), target] for source, target in binds.items()]
    return commands


def create_mount_points() -> None:
    """Make the directories that hosts mount over, where the machine lacks them."""
    for target in [SHARED_MOUNT, GLUSTER_MOUNT, *HOST_MOUNTS.values()]:
        Path(target).mkdir(parents=True, exist_ok=True)
    for file in (Path("/etc/hosts"), Path("/etc/hostname")):
        file.touch(exist_ok=True)


def hosts_file(addresses: Mapping[str, str]) -> str:
    """Return /etc/hosts of every host of the lab."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{address} {name}" for name, address in addresses.items()]
    return "\n".join(lines) + "\n"


async def boot(table: ProcessTable, layout: Layout, name: str, images: Path) -> Namespaces:
    """Create a host's namespaces."""
    return await hold(
        table, name, ("mount", "net", "uts"), setup=mount_commands(layout, name, images)
    )


def libvirtd_command() -> Sequence[str]:
    """Return the command line of a host's libvirtd, to be run inside its namespaces."""
    return ["libvirtd", "--listen"]
