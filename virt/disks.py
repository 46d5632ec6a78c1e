"""Files of guests' disks: overlays on cached images, their making and their removal."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from innkeeper.errors import FormatMismatch, HypervisorError
from virt.identity import sync_directory
from virt.qemu_img import ImageFormat, QemuImgInfo, qemu_img, qemu_img_info

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
    if path.exists():
        _require_same(path, backing_path, backing_format, size_bytes)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    for half_made in path.parent.glob(f".{path.name}.*"):
        half_made.unlink(missing_ok=True)
    own = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        backing = ["-F", backing_format, "-b", str(backing_path)]
        qemu_img(
            ["create", "-q", "-f", "qcow2", *backing, str(own), str(size_bytes)],
            what=f"create the overlay {path}",
        )
        try:
            os.link(own, path)
        except FileExistsError:
            _require_same(path, backing_path, backing_format, size_bytes)
            return False
        sync_directory(path.parent)
    finally:
        own.unlink(missing_ok=True)
    return True


def _require_same(path: Path, backing: Path, backing_format: str, size_bytes: int) -> None:
    try:
        info = qemu_img_info(path, "qcow2", is_in_use=True)
    except FormatMismatch as error:
        raise HypervisorError(
            f"{path} is there already and is not a qcow2 file.", {"path": str(path)}
        ) from error
    found = (info.backing_path, info.backing_format, info.virtual_size_bytes, info.data_file)
    if found != (str(backing), backing_format, size_bytes, None):
        raise HypervisorError(
            f"{path} is there already with {info.virtual_size_bytes} bytes over"
            f" {info.backing_path}; wanted were {size_bytes} bytes over {backing}.",
            {"path": str(path), "hint": "Find out whose file it is before removing it."},
        )


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
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free
