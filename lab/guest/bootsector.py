"""The smallest guest: 512 bytes that print a heartbeat on COM1 and otherwise sleep.

It boots in under a tenth of a second, needs no memory to speak of, and its heartbeat shows whether
it ran on, paused, restarted or ran twice. It ignores ACPI: end it with destroy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MARKER = "innkeeper-boot: up"
IMAGE_BYTES = 1 << 20

_ORIGIN = 0x7C00
_SECTOR_BYTES = 512
_PARTITION_TABLE = 446


@dataclass(frozen=True)
class _Label:
    name: str


@dataclass(frozen=True)
class _To:
    """A place in the code: its address, or its distance from the next instruction."""

    name: str
    size: int
    relative: bool

    def encode(self, labels: dict[str, int], here: int) -> bytes:
        value = labels[self.name] - (here + self.size if self.relative else 0)
        return value.to_bytes(self.size, "little", signed=self.relative)


def _near(name: str) -> _To:
    return _To(name, 2, relative=True)


def _short(name: str) -> _To:
    return _To(name, 1, relative=True)


def _address(name: str) -> _To:
    return _To(name, 2, relative=False)


def _code() -> Iterator[bytes | _Label | _To]:
    """Yield the program, 16-bit real mode."""
    yield b"\x31\xc0"  # xor ax, ax
    yield b"\x8e\xd8"  # mov ds, ax
    yield b"\x8e\xd0"  # mov ss, ax
    yield b"\xbc\x00\x7c"  # mov sp, 0x7c00
    yield b"\xfc"  # cld
    yield b"\xfb"  # sti
    yield b"\xba\xfb\x03"  # mov dx, 0x3fb      line control
    yield b"\xb0\x03\xee"  # mov al, 3; out     8 bits, no parity
    yield b"\xbe"
    yield _address("marker")  # mov si, marker
    yield b"\xe8"
    yield _near("print_text")  # call print_text
    yield b"\x66\x31\xed"  # xor ebp, ebp       the counter

    yield _Label("beat")
    yield b"\xbe"
    yield _address("prefix")  # mov si, prefix
    yield b"\xe8"
    yield _near("print_text")  # call print_text
    yield b"\x66\x89\xe8"  # mov eax, ebp
    yield b"\xe8"
    yield _near("print_number")  # call print_number
    yield b"\xbe"
    yield _address("newline")  # mov si, newline
    yield b"\xe8"
    yield _near("print_text")  # call print_text
    yield b"\x66\x45"  # inc ebp
    # Count changes of the BIOS tick (18.2 Hz) rather than compare with a target: it restarts at
    # midnight.
    yield b"\xb9\x09\x00"  # mov cx, 9
    yield b"\x66\x8b\x3e\x6c\x04"  # mov edi, [0x46c]
    yield _Label("sleep")
    yield b"\xf4"  # hlt
    yield b"\x66\xa1\x6c\x04"  # mov eax, [0x46c]
    yield b"\x66\x39\xf8"  # cmp eax, edi
    yield b"\x74"
    yield _short("sleep")  # je sleep
    yield b"\x66\x89\xc7"  # mov edi, eax
    yield b"\xe2"
    yield _short("sleep")  # loop sleep
    yield b"\xeb"
    yield _short("beat")  # jmp beat

    yield _Label("print_number")  # eax, decimal
    yield b"\x66\xbb\x0a\x00\x00\x00"  # mov ebx, 10
    yield b"\x31\xc9"  # xor cx, cx
    yield _Label("divide")
    yield b"\x66\x31\xd2"  # xor edx, edx
    yield b"\x66\xf7\xf3"  # div ebx
    yield b"\x52"  # push dx
    yield b"\x41"  # inc cx
    yield b"\x66\x85\xc0"  # test eax, eax
    yield b"\x75"
    yield _short("divide")  # jnz divide
    yield _Label("digit")
    yield b"\x58"  # pop ax
    yield b"\x04\x30"  # add al, '0'
    yield b"\xe8"
    yield _near("print_character")  # call print_character
    yield b"\xe2"
    yield _short("digit")  # loop digit
    yield b"\xc3"  # ret

    yield _Label("print_text")  # si, ends with NUL
    yield b"\xac"  # lodsb
    yield b"\x84\xc0"  # test al, al
    yield b"\x74"
    yield _short("text_end")  # jz text_end
    yield b"\xe8"
    yield _near("print_character")  # call print_character
    yield b"\xeb"
    yield _short("print_text")  # jmp print_text
    yield _Label("text_end")
    yield b"\xc3"  # ret

    yield _Label("print_character")  # al
    yield b"\x88\xc4"  # mov ah, al
    yield b"\xba\xfd\x03"  # mov dx, 0x3fd      line status
    yield _Label("busy")
    yield b"\xec"  # in al, dx
    yield b"\xa8\x20"  # test al, 0x20       transmitter empty?
    yield b"\x74"
    yield _short("busy")  # jz busy
    yield b"\xba\xf8\x03"  # mov dx, 0x3f8
    yield b"\x88\xe0"  # mov al, ah
    yield b"\xee"  # out dx, al
    yield b"\xc3"  # ret

    yield _Label("marker")
    yield MARKER.encode() + b"\r\n\0"
    yield _Label("prefix")
    yield b"hb \0"
    yield _Label("newline")
    yield b"\r\n\0"


def _assemble() -> bytes:
    items = list(_code())
    labels: dict[str, int] = {}
    here = _ORIGIN
    for item in items:
        if isinstance(item, _Label):
            labels[item.name] = here
        else:
            here += item.size if isinstance(item, _To) else len(item)
    code = b""
    for item in items:
        if isinstance(item, _To):
            code += item.encode(labels, _ORIGIN + len(code))
        elif isinstance(item, bytes):
            code += item
    return code


def partition_entry(kind: int, first_sector: int, sectors: int) -> bytes:
    """Return a bootable entry of an MBR partition table, with LBA only."""
    unused_chs = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", 0x80, unused_chs, kind, unused_chs, first_sector, sectors)


def sector() -> bytes:
    """Return the boot sector, with a partition that makes image inspectors accept the disk."""
    code = _assemble()
    table = partition_entry(0x83, 1, IMAGE_BYTES // _SECTOR_BYTES - 1).ljust(64, b"\0")
    return code.ljust(_PARTITION_TABLE, b"\0") + table + b"\x55\xaa"


def raw_image() -> bytes:
    """Return the whole disk."""
    return sector().ljust(IMAGE_BYTES, b"\0")
