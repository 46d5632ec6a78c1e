"""Boot sectors that misbehave, each a few bytes of 16-bit code that speaks on COM1."""

from pathlib import Path

from lab.guest.bootsector import partition_entry

_SECTOR_BYTES = 512
_PARTITION_TABLE = 446
_IMAGE_BYTES = 1 << 20
_ORIGIN = 0x7C00

_SETUP = bytes.fromhex("31c0 8ed8 8ec0 8ed0 bc007c fc")  # segments 0, stack, direction
_REST = bytes.fromhex("fa f4 ebfc")  # cli; hlt; jmp hlt


def _say(text: str) -> bytes:
    """Return code that writes a text to COM1, byte by byte."""
    out = b"".join(b"\xb0" + bytes([byte]) + b"\xee" for byte in text.encode())
    return b"\xba\xf8\x03" + out  # mov dx, 0x3f8; mov al, …; out dx, al; …


def resetting(text: str = "again\r\n") -> bytes:
    """Say something, then triple-fault: the machine resets, and so for ever."""
    code = _SETUP + _say(text)
    # lidt [zeros]; int 3: there is no handler for it, nor for the fault of that, nor for the next.
    zeros = _ORIGIN + len(code) + 5 + 2
    return code + b"\x0f\x01\x1e" + zeros.to_bytes(2, "little") + b"\xcd\x03" + bytes(6)


def panicking(text: str = "about to panic\r\n") -> bytes:
    """Say something, then tell the pvpanic device of a panic."""
    return _SETUP + _say(text) + bytes.fromhex("ba0505 b001 ee") + _REST


def flooding() -> bytes:
    """Write a line to COM1 without a pause and without asking whether there is room."""
    line = b"flood flood flood flood flood flood flood flood flood flood fl\r\n"
    head = _SETUP + b"\xba\xf8\x03"
    # next: mov si, line; mov cx, length; rep outsb; jmp next
    address = _ORIGIN + len(head) + 10
    loop = b"\xbe" + address.to_bytes(2, "little") + b"\xb9" + len(line).to_bytes(2, "little")
    return head + loop + b"\xf3\x6e" + b"\xeb\xf6" + line


def saying(text: str) -> bytes:
    """Say something and rest."""
    return _SETUP + _say(text) + _REST


def write_image(code: bytes, target: Path) -> Path:
    """Write a raw disk with a boot sector, and a partition that image inspectors accept."""
    assert len(code) <= _PARTITION_TABLE
    table = partition_entry(0x83, 1, _IMAGE_BYTES // _SECTOR_BYTES - 1).ljust(64, b"\0")
    sector = code.ljust(_PARTITION_TABLE, b"\0") + table + b"\x55\xaa"
    target.write_bytes(sector.ljust(_IMAGE_BYTES, b"\0"))
    return target
