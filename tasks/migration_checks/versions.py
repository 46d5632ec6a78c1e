"""Whether one host's hypervisor can go on with what another one's began; a pure comparison."""

import re
from collections.abc import Iterator

from models.host import Host
from tasks.failed_check import Failure, failure
from tasks.migration_checks.move import Move


def check_versions(move: Move) -> Iterator[Failure]:
    """The destination's hypervisor must be of the same type, and not older."""
    src, dst = move.hosts.get(move.src), move.hosts.get(move.dst)
    if src is None or dst is None:
        return
    yield from compare_hypervisors(src, dst, machine=move.needs.machine)


def compare_hypervisors(src: Host, dst: Host, *, machine: str) -> Iterator[Failure]:
    """Yield what speaks against going from one hypervisor to another.

    Releases of one series (7.2.1 and 7.2.22) count as the same.

    Args:
        src: the source's row.
        dst: the destination's row.
        machine: the guest's machine type, which names the QEMU it was made for.
    """
    if src.hypervisor_type != dst.hypervisor_type:
        yield failure(
            "hypervisor",
            f"{dst.name} runs {dst.hypervisor_type}, {src.name} runs {src.hypervisor_type}.",
            "Choose a destination with the same hypervisor.",
        )
        return
    for product, of_src, of_dst in (
        ("QEMU", src.qemu_version, dst.qemu_version),
        ("libvirt", src.libvirt_version, dst.libvirt_version),
    ):
        if series(of_dst) < series(of_src):
            yield failure(
                "hypervisor",
                f"{dst.name} has {product} {of_dst}, older than the {of_src} of {src.name}.",
                f"Neither QEMU nor libvirt promises the way back; upgrade {dst.name} first.",
            )
    needed = re.search(r"-(\d+\.\d+)(?:$|\.)", machine)
    if needed and series(dst.qemu_version) < series(needed[1]):
        yield failure(
            "hypervisor",
            f"{dst.name} has QEMU {dst.qemu_version}; the guest's machine type {machine} needs "
            f"{needed[1]}.",
            f"Upgrade QEMU on {dst.name}, or choose another destination.",
        )


def series(version: str | None) -> tuple[int, ...]:
    """Return the first two numbers of a version; an unknown version is older than any."""
    return tuple(int(number) for number in re.findall(r"\d+", version or "")[:2])
