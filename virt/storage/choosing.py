"""Which back end makes a disk."""

from pathlib import Path

from virt.qemu_img import ImageFormat
from virt.storage.backend import DiskBackend
from virt.storage.qcow2 import Qcow2Backend
from virt.storage.raw import RawBackend


def get_backend(disk_format: ImageFormat, directory: Path) -> DiskBackend:
    """Return what makes disks of a format in a guest's directory."""
    return RawBackend(directory) if disk_format == "raw" else Qcow2Backend(directory)
