"""What a file is by its first bytes, for telling people; and what no raw disk begins with."""

from typing import Literal

Kind = Literal["disk", "packed", "page", "other"]

_AT_THE_BEGINNING: tuple[tuple[bytes, Kind, str], ...] = (
    (b"QFI\xfb", "disk", "qcow2"),
    (b"QED\x00", "disk", "qed"),
    (b"KDMV", "disk", "vmdk"),
    (b"COWD", "disk", "vmdk"),
    (b"# Disk DescriptorFile", "disk", "vmdk"),
    (b"vhdxfile", "disk", "vhdx"),
    (b"conectix", "disk", "vhd"),
    (b"LUKS\xba\xbe", "disk", "luks"),
    (b"WithoutFreeSpace", "disk", "parallels"),
    (b"WithouFreSpacExt", "disk", "parallels"),
    (b"Bochs Virtual HD Image", "disk", "bochs"),
    (b"#!/bin/sh\n#V2.0 Format", "disk", "cloop"),
    (b"\x1f\x8b", "packed", "a gzip archive"),
    (b"\xfd7zXZ\x00", "packed", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "packed", "a zstd archive"),
    (b"BZh", "packed", "a bzip2 archive"),
    (b"PK\x03\x04", "packed", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "packed", "a 7z archive"),
    (b"\x04\x22\x4d\x18", "packed", "an lz4 archive"),
)
_VDI_AT, _VDI = 64, b"\x7f\x10\xda\xbe"
_TAR_AT, _TAR = 257, b"ustar"
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<error>")


def name_first_bytes(data: bytes) -> tuple[Kind, str]:
    """Return what a file seems to be.

    Args:
        data: its first bytes, 512 or more where there are as many.

    Returns:
        ``disk`` with a format's name, or ``packed``, ``page`` or ``other`` with words for people.
    """
    for magic, kind, name in _AT_THE_BEGINNING:
        if data.startswith(magic):
            return kind, name
    if data[_VDI_AT:].startswith(_VDI):
        return "disk", "vdi"
    if data.lstrip()[:64].lower().startswith(_PAGES):
        return "page", "a web page"
    if data[_TAR_AT:].startswith(_TAR):
        return "other", "a tar archive"
    if not data:
        return "other", "empty"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in data[:512]):
        return "other", "text"
    return "other", "something else"
