"""Files of guests' disks: overlays on cached images, their making and their removal."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from virt.qemu_img import ImageFormat, QemuImgInfo, qemu_img_info
from virt.storage.backend import BaseImage, Made
from virt.storage.qcow2 import Qcow2Backend

__all__ = [
    "DiskUsage",
    "QemuImgInfo",
    "create_overlay",
    "ensure_removed",
    "free_bytes",
    "get_usage",
    "qemu_img_info",
]


def create_overlay(
    path: Path, *, backing_path: Path, backing_format: ImageFormat, size_bytes: int
) -> bool:
    """Make an empty qcow2 over a backing file, unless just that is there already.

    Half-made ones of a process that died are removed; the caller sees to it that no other is at
    work on the same path.

    Args:
        path: absolute; its directory is made when missing.
        backing_path: absolute; must exist.
        backing_format: given to QEMU, which must never guess it.
        size_bytes: the disk's size as the guest sees it.

    Returns:
        True when it was made now, False when it was there.

    Raises:
        HypervisorError: something else is at the path, or qemu-img failed.
    """
    base = BaseImage(path=backing_path, format=backing_format)
    made = Qcow2Backend(path.parent).create_root(path.name, base=base, size_bytes=size_bytes)
    return made is Made.OVERLAY


def ensure_removed(path: Path) -> bool:
    """Remove a file; return whether there was one."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class DiskUsage:
    """A file's size: what it says, and what it takes on the host."""

    apparent_bytes: int
    allocated_bytes: int


def get_usage(path: Path) -> DiskUsage:
    """Return a file's size.

    Raises:
        FileNotFoundError: there is none.
    """
    stat = path.stat()
    return DiskUsage(apparent_bytes=stat.st_size, allocated_bytes=stat.st_blocks * 512)


def free_bytes(path: Path) -> int:
    """Return what is free for us on the file system of a path, which need not exist yet."""
    return shutil.disk_usage(_find_existing(path)).free


def get_file_system_id(path: Path) -> str:
    """Return what tells a path's file system from this host's others; it need not exist yet.

    It is good until the host mounts it anew: compare only what was looked at together.
    """
    return str(_find_existing(path).stat().st_dev)


def _find_existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
