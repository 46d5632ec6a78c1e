"""How much of a guest's memory its host has ever had to provide: what a migration sends in full.

QEMU sends a page that was never touched as one byte. Libvirt tells the size of the whole process
(``rss``), of which QEMU's own part can be as large as a small guest; the kernel tells it for each
mapping, and the guest's memory is one mapping of exactly that size.
"""

import re
from pathlib import Path
from uuid import UUID

PROC = Path("/proc")
# The kernel walks the page tables of every mapping: 0.1 s for this much memory.
MOST_BYTES = 64 * 2**30
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ")
_FIGURE = re.compile(r"^(Size|Rss|Shared_Hugetlb|Private_Hugetlb): +([0-9]+) kB")


def find_resident_bytes(instance_id: UUID, memory_bytes: int, *, proc: Path = PROC) -> int | None:
    """Return how much of a running guest's memory is there; None when nobody can tell.

    Args:
        instance_id: the guest; QEMU has it on its command line.
        memory_bytes: the size of the guest's memory.
        proc: where the kernel's process files are.
    """
    if memory_bytes > MOST_BYTES:
        return None
    pid = _find_qemu(instance_id, proc)
    if pid is None:
        return None
    try:
        return read_resident_bytes((proc / pid / "smaps").read_text(), memory_bytes)
    except OSError:
        return None


def read_resident_bytes(smaps: str, memory_bytes: int) -> int | None:
    """Sum what is resident of the mappings that are as large as the guest's memory.

    Args:
        smaps: the text of ``/proc/PID/smaps``.
        memory_bytes: the size of the guest's memory.

    Returns:
        None when there is no such mapping: memory in several parts.
    """
    wanted_kib, found_kib = memory_bytes >> 10, None
    size_kib = 0
    for line in smaps.splitlines():
        if _MAPPING.match(line):
            size_kib = 0
        figure = _FIGURE.match(line)
        if figure is None:
            continue
        if figure[1] == "Size":
            size_kib = int(figure[2])
        elif size_kib == wanted_kib:
            found_kib = (found_kib or 0) + int(figure[2])
    return None if found_kib is None else min(found_kib << 10, memory_bytes)


def _find_qemu(instance_id: UUID, proc: Path) -> str | None:
    wanted = f"-uuid\0{instance_id}\0".encode()
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if not (process / "comm").read_text().startswith(("qemu", "kvm")):
                continue
            if wanted in (process / "cmdline").read_bytes():
                return process.name
        except OSError:
            continue
    return None
