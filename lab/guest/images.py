"""The cache of guest images, keyed by everything that goes into them."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from lab.description import Images
from lab.guest import bootsector, disk, initramfs
from lab.guest import kernel as kernels
from lab.guest.kernel import Kernel
from lab.layout import cache_directory

_KEY_LENGTH = 12


def ensure(show: Callable[[str], None]) -> Images:
    """Return the lab's images, after building those that are missing.

    Raises:
        LabError: a build failed.
    """
    cache = cache_directory()
    directory = cache / "images"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel = kernels.ensure(cache, show)
        guest = directory / f"guest-{_guest_key(kernel)}.qcow2"
        boot = directory / f"boot-{_boot_key()}.qcow2"
        if not guest.exists():
            show("building the guest image (once per machine)")
            build_guest(kernel, guest)
        if not boot.exists():
            build_boot(boot)
    return Images(
        directory=str(directory),
        guest=str(guest),
        guest_sha256=_sha256(guest),
        boot=str(boot),
        boot_sha256=_sha256(boot),
        kernel=str(guest.with_suffix(".kernel")),
        ramdisk=str(guest.with_suffix(".ramdisk")),
    )


def build_guest(kernel: Kernel, target: Path) -> None:
    """Build the Linux guest, and lay its kernel and initramfs beside it."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as name:
        directory = Path(name)
        files = initramfs.build(kernel)
        raw = disk.build(directory, kernel.image, files)
        qcow2 = directory / "guest.qcow2"
        disk.convert(raw, qcow2)
        # The image last: it is what tells that the build is complete.
        for suffix, content in ((".kernel", kernel.image.read_bytes()), (".ramdisk", files)):
            part = directory / f"part{suffix}"
            part.write_bytes(content)
            part.replace(target.with_suffix(suffix))
        qcow2.replace(target)


def build_boot(target: Path) -> None:
    """Build the boot-sector guest, as qcow2 and beside it as raw."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as name:
        raw, qcow2 = Path(name) / "boot.raw", Path(name) / "boot.qcow2"
        raw.write_bytes(bootsector.raw_image())
        disk.convert(raw, qcow2)
        raw.replace(target.with_suffix(".raw"))
        qcow2.replace(target)


def _guest_key(kernel: Kernel) -> str:
    modules = (kernel.find_module(name) for name in kernels.MODULES)
    return _key(
        [
            *sorted(Path(__file__).parent.glob("*.py")),
            initramfs.INIT,
            initramfs.FLATTEN,
            initramfs.DIRTY_SOURCE,
            initramfs.BUSYBOX,
            initramfs.AGENT,
            *initramfs.agent_libraries(),
            kernel.image,
            *(module for module in modules if module is not None),
            disk.MASTER_BOOT_RECORD,
            Path("/usr/bin/syslinux"),
        ]
    )


def _boot_key() -> str:
    return _key([Path(bootsector.__file__), Path(disk.__file__)])


def _key(inputs: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in inputs:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:_KEY_LENGTH]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
