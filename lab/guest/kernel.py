"""The guest's kernel: Debian's cloud kernel, unpacked (never installed) into the lab's cache."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

_METAPACKAGE = "linux-image-cloud-amd64"

MODULES = (
    # In the order in which they can be loaded.
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_balloon",
    "button",
    "evdev",
    "cdrom",
    "isofs",
    "scsi_common",
    "scsi_mod",
    "sr_mod",
    "virtio_scsi",
    "libata",
    "ata_piix",
)


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path

    def find_module(self, name: str) -> Path | None:
        """Return a module's file; None when the kernel has it built in."""
        return next(self.modules.rglob(f"{name}.ko"), None)


def ensure(cache: Path, show: Callable[[str], None]) -> Kernel:
    """Return the cached kernel, after downloading it if there is none.

    Raises:
        LabError: it could not be downloaded.
    """
    kernels = cache / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    versions = sorted(entry for entry in kernels.iterdir() if not entry.name.startswith("."))
    if not versions:
        show("downloading the guest's kernel")
        versions = [_download(kernels)]
    return _unpacked(versions[-1])


def _download(kernels: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=kernels, prefix=".download-") as name:
        directory = Path(name)
        try:
            package = _fetch(directory)
        except LabError:
            _run(["apt-get", "update", "-qq"], directory)
            package = _fetch(directory)
        tree = directory / "tree"
        _run(["dpkg-deb", "--extract", str(package), str(tree)], directory)
        version = next((tree / "lib/modules").iterdir()).name
        target = kernels / version
        shutil.move(tree, target)
    return target


def _fetch(directory: Path) -> Path:
    depends = _run(["apt-cache", "depends", "--important", _METAPACKAGE], directory)
    names = [line.split()[1] for line in depends.splitlines() if "Depends: linux-image" in line]
    if not names:
        raise LabError(
            f"apt knows no package {_METAPACKAGE}, whose kernel the lab's guest boots;"
            " the lab needs Debian 12 on amd64"
        )
    # As root: apt's download user cannot write into our directory.
    as_root = ["-o", "APT::Sandbox::User=root"]
    _run(["apt-get", "download", "-qq", *as_root, names[0]], directory)
    return next(directory.glob("*.deb"))


def _run(argv: list[str], directory: Path) -> str:
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout


def _unpacked(tree: Path) -> Kernel:
    return Kernel(next((tree / "boot").glob("vmlinuz-*")), tree / "lib/modules")
