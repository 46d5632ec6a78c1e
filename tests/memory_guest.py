"""A boot-sector guest with memory that takes its time, for tests of post-copy.

It fills a part of its memory, then rewrites a few of the pages with each beat on COM1. All that
interrupts touch lies in a handful of pages: once it has beaten on a host, nothing but its own code
waits for a page that is missing. A Linux without KVM may wait inside QEMU, and hold QEMU up.
"""

import hashlib
import struct
import subprocess
from pathlib import Path
from typing import Any

from lab.guest.bootsector import IMAGE_BYTES, partition_entry

_ORIGIN = 0x7C00
_FIRST = 2 << 20
_PAGES_A_BEAT = 16
_PARTITION_TABLE = 446


def _program(filled_mib: int) -> bytes:
    first, end = struct.pack("<I", _FIRST), struct.pack("<I", _FIRST + (filled_mib << 20))
    next_page = b"\x66\x81\xc7\x00\x10\x00\x00" + b"\x66\x81\xff" + end  # add edi, 4096; cmp edi
    start = b"\xfa\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c"  # cli; ax, ds, ss = 0; mov sp, 0x7c00
    # A flat fs, which stays flat in real mode: lgdt; into protected mode; mov fs; back; sti.
    flat = b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0\xbb\x08\x00\x8e\xe3\x24\xfe\x0f\x22\xc0\xfb"
    rewind = b"\x66\xbf" + first  # mov edi, first
    fill = b"\x64\x66\x67\x89\x3f" + next_page  # mov fs:[edi], edi
    fill += b"\x72" + struct.pack("b", -len(fill) - 2)  # jb fill
    touch = b"\x64\x66\x67\xff\x07" + next_page  # inc dword fs:[edi]
    touch += b"\x72" + struct.pack("b", len(rewind)) + rewind  # jb over the rewind
    touch += b"\xe2" + struct.pack("b", -len(touch) - 2)  # loop touch
    beat = b"\xb9" + struct.pack("<H", _PAGES_A_BEAT) + touch  # mov cx, pages
    beat += b"\xba\xf8\x03\xb0\x2e\xee\xb0\x0a\xee"  # mov dx, 0x3f8; out '.', out newline
    beat += b"\xb9\x04\x00\xf4\xe2\xfd"  # four ticks of hlt
    beat += b"\xeb" + struct.pack("b", -len(beat) - 2)  # jmp beat
    before_table = len(start) + 5 + len(flat) + 2 * len(rewind) + len(fill) + len(beat)
    table = _ORIGIN + before_table
    segments = bytes(8) + b"\xff\xff\x00\x00\x00\x92\xcf\x00"
    load = b"\x0f\x01\x16" + struct.pack("<H", table + len(segments))  # lgdt
    code = start + load + flat + rewind + fill + rewind + beat
    return code + segments + struct.pack("<HI", len(segments) - 1, table)


def build_memory_guest(target: Path, *, filled_mib: int) -> dict[str, Any]:
    """Write the guest's image, and return what a spawn needs.

    Args:
        target: the qcow2 file.
        filled_mib: how much of its memory is not empty.
    """
    entry = partition_entry(0x83, 1, IMAGE_BYTES // 512 - 1).ljust(64, b"\0")
    sector = _program(filled_mib).ljust(_PARTITION_TABLE, b"\0") + entry + b"\x55\xaa"
    raw = target.with_suffix(".raw")
    raw.write_bytes(sector.ljust(IMAGE_BYTES, b"\0"))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target)]
    subprocess.run(convert, check=True)
    raw.unlink()
    return {
        "image": f"file://{target}",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "memory_mib": 2 * filled_mib,
    }
