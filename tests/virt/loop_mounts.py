"""File systems that share blocks between files, on a loop device, unmounted whatever happens."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
_MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
}


@contextmanager
def mounted(filesystem: str, directory: Path, *, size_mib: int = 512) -> Iterator[Path]:
    """Make a file system in a file, mount it, and unmount it at the end of the block."""
    disk, point = directory / f"{filesystem}.disk", directory / filesystem
    with disk.open("wb") as file:
        file.truncate(size_mib * MIB)
    point.mkdir()
    subprocess.run([*_MAKE[filesystem], str(disk)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(point)], check=True)
    try:
        yield point
    finally:
        # Lazily: a test that failed may have left a file open, and the loop device goes with it.
        subprocess.run(["umount", "--lazy", str(point)], check=True)


def count_shared_extents(path: Path) -> int:
    """Return how many of a file's extents the kernel says belong to another file as well."""
    told = subprocess.run(["filefrag", "-v", str(path)], check=True, capture_output=True, text=True)
    return sum("shared" in line for line in told.stdout.splitlines())
