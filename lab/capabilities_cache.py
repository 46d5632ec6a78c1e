"""QEMU's capabilities, probed once per machine instead of once per host.

libvirtd asks a QEMU binary for its abilities before the first define, which takes seconds. It keeps
the answer in /var/cache/libvirt with what it depends on (binary, kernel, microcode) and checks that
itself, so an outdated copy costs time and nothing else.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.layout import cache_directory


def _kept() -> Path:
    return cache_directory() / "qemu-capabilities"


def _of_host(host_cache: Path) -> Path:
    return host_cache / "qemu" / "capabilities"


def seed(host_cache: Path) -> bool:
    """Give a host's libvirt the kept answers; return False when there are none."""
    kept = sorted(_kept().glob("*.xml"))
    target = _of_host(host_cache)
    target.mkdir(parents=True, exist_ok=True)
    for file in kept:
        shutil.copy2(file, target / file.name)
    return bool(kept)


def keep(host_cache: Path) -> None:
    """Keep what a host's libvirt has found out."""
    _kept().mkdir(parents=True, exist_ok=True)
    for file in _of_host(host_cache).glob("*.xml"):
        target = _kept() / file.name
        if target.exists() and target.read_bytes() == file.read_bytes():
            continue
        partial = target.with_suffix(f".{os.getpid()}.partial")
        shutil.copy2(file, partial)
        partial.replace(target)
