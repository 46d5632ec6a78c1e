"""A bootable disk made without mounting anything: MBR, a FAT partition, syslinux, Linux."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

from lab.errors import LabError
from lab.guest.bootsector import partition_entry

MASTER_BOOT_RECORD = Path("/usr/lib/SYSLINUX/mbr.bin")

_SECTOR_BYTES = 512
_FIRST_SECTOR = 2048
_DISK_MIB = 64
_FAT16_LBA = 0x0E
_SERIAL_NUMBER = "494e4e4b"
_SOURCE_DATE = "1704067200"
"""2024-01-01 UTC, the date of every file on the disk."""

COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=1 panic=1 mitigations=off"
    # Probing what a lab guest never has costs more than the rest of the boot.
    " i8042.noaux i8042.nokbd i8042.nopnp 8250.nr_uarts=1 cryptomgr.notests"
    " random.trust_cpu=on no_timer_check"
)
_SYSLINUX_CONFIGURATION = f"""\
DEFAULT linux
PROMPT 0
TIMEOUT 0
LABEL linux
  KERNEL /vmlinuz
  INITRD /initrd
  APPEND {COMMAND_LINE}
"""


def build(directory: Path, kernel: Path, initramfs: bytes) -> Path:
    """Make the raw disk in a directory and return its path; equal inputs give equal bytes."""
    disk = directory / "disk.raw"
    sectors = _DISK_MIB * 2048 - _FIRST_SECTOR
    boot_code = MASTER_BOOT_RECORD.read_bytes().ljust(446, b"\0")
    table = partition_entry(_FAT16_LBA, _FIRST_SECTOR, sectors).ljust(64, b"\0")
    with disk.open("wb") as file:
        file.write(boot_code + table + b"\x55\xaa")
        file.truncate(_DISK_MIB << 20)
    offset = _FIRST_SECTOR * _SECTOR_BYTES
    partition = f"{disk}@@{offset}"
    geometry = ["-T", str(sectors), "-h", "64", "-s", "32", "-H", str(_FIRST_SECTOR)]
    _run(["mformat", "-i", partition, "-N", _SERIAL_NUMBER, *geometry, "-c", "8", "::"])
    _run(["syslinux", "--install", "--offset", str(offset), str(disk)])
    configuration, initrd = directory / "syslinux.cfg", directory / "initrd"
    configuration.write_text(_SYSLINUX_CONFIGURATION)
    initrd.write_bytes(gzip.compress(initramfs, mtime=0))
    files = {configuration: "syslinux.cfg", kernel: "vmlinuz", initrd: "initrd"}
    for source, name in files.items():
        _run(["mcopy", "-i", partition, str(source), f"::{name}"])
    return disk


def convert(raw: Path, target: Path) -> None:
    """Write a raw disk as a compressed qcow2."""
    # One coroutine: the order in which clusters are written, and so the bytes, is fixed.
    options = ["-m", "1", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zlib"]
    _run(["qemu-img", "convert", *options, str(raw), str(target)])


def _run(argv: list[str]) -> None:
    env = os.environ | {"SOURCE_DATE_EPOCH": _SOURCE_DATE, "TZ": "UTC", "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(f"the guest image needs {argv[0]}; run scripts/setup") from None
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stdout}{done.stderr}")
