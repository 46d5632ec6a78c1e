"""Images made to do harm, and what each must be refused with."""

import gzip
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from innkeeper.errors import (
    BackingFile,
    ExternalDataFile,
    FormatMismatch,
    ImageTooLarge,
    InnkeeperError,
    MalformedImage,
    NotAnImage,
    TruncatedImage,
    UnsupportedImageFeature,
)
from virt.qemu_img import ImageFormat

MIB = 1 << 20
Make = Callable[[Path, Path], None]


def qemu_img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


def plain(path: Path, _secret: Path = Path(), *, size: str = "16M", version: str = "1.1") -> None:
    seed = path.with_name("seed")
    seed.write_bytes(bytes(range(256)) * 4096)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", f"compat={version}", seed, path)
    qemu_img("resize", "-f", "qcow2", path, size)
    seed.unlink()


def backing(path: Path, secret: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", secret, path, "8M")


def json_backing(path: Path, secret: Path) -> None:
    name = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}'
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", name, path, "8M")


def network_backing(path: Path, _secret: Path) -> None:
    qemu_img(
        *("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://127.0.0.1:10809/x"), path, "8M"
    )


def data_file(path: Path, secret: Path) -> None:
    other = path.with_name("data")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={other},data_file_raw=on", path, "1M")
    # The same length keeps the header's extensions where they are.
    name = str(other).encode()
    image = path.read_bytes()
    path.write_bytes(image.replace(name, str(secret).encode()[: len(name)].ljust(len(name), b"/")))
    other.unlink()


def vmdk_flat(path: Path, secret: Path) -> None:
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 2048 FLAT "{secret}" 0\n' + " " * 1024
    )


def vmdk_after_spaces(path: Path, secret: Path) -> None:
    path.write_bytes(b"\n" * 600)
    with path.open("ab") as file:
        vmdk = path.with_name("vmdk")
        vmdk_flat(vmdk, secret)
        file.write(vmdk.read_bytes())
        vmdk.unlink()


def patched(offset: int, layout: str, value: int, **arguments: str) -> Make:
    def make(path: Path, secret: Path) -> None:
        plain(path, secret, **arguments)  # type: ignore[arg-type]
        image = bytearray(path.read_bytes())
        struct.pack_into(f">{layout}", image, offset, value)
        path.write_bytes(image)

    return make


def cut(size_bytes: int) -> Make:
    def make(path: Path, secret: Path) -> None:
        plain(path, secret)
        path.write_bytes(path.read_bytes()[:size_bytes])

    return make


def foreign(other: str, *options: str) -> Make:
    def make(path: Path, _secret: Path) -> None:
        qemu_img("create", "-f", other, *options, path, "8M")

    return make


def holding(data: bytes) -> Make:
    def make(path: Path, _secret: Path) -> None:
        path.write_bytes(data)

    return make


def gzipped(path: Path, secret: Path) -> None:
    plain(path, secret)
    path.write_bytes(gzip.compress(path.read_bytes()))


def l2_elsewhere(path: Path, secret: Path) -> None:
    """An L1 entry that points far behind the end of the file."""
    plain(path, secret)
    image = bytearray(path.read_bytes())
    (l1_offset,) = struct.unpack_from(">Q", image, 40)
    struct.pack_into(">Q", image, l1_offset, (1 << 63) | (1 << 40))
    path.write_bytes(image)


def refcounts_zeroed(path: Path, secret: Path) -> None:
    """Clusters that are in use and counted as free: a writer would give them away twice."""
    plain(path, secret)
    image = bytearray(path.read_bytes())
    (table,) = struct.unpack_from(">Q", image, 48)
    (block,) = struct.unpack_from(">Q", image, table)
    image[block : block + 64] = bytes(64)
    path.write_bytes(image)


@dataclass(frozen=True)
class Attack:
    """One image, what it is declared to be, and what it is refused with."""

    name: str
    make: Make
    error: type[InnkeeperError]
    declared: ImageFormat = "qcow2"
    stops_early: bool = True


_LUKS = b"LUKS\xba\xbe\x00\x01" + bytes(1 << 20)
_VHD = b"conectix" + bytes(1 << 20)

ATTACKS = (
    Attack("backing_file", backing, BackingFile),
    Attack("backing_file_json", json_backing, BackingFile),
    Attack("backing_file_on_the_network", network_backing, BackingFile),
    Attack("backing_length_without_offset", patched(16, "I", 12), BackingFile),
    Attack("backing_file_called_raw", backing, FormatMismatch, "raw"),
    Attack("external_data_file", data_file, ExternalDataFile),
    Attack("external_data_file_called_raw", data_file, FormatMismatch, "raw"),
    Attack("unknown_feature_bit", patched(72, "Q", 1 << 40), UnsupportedImageFeature),
    Attack("extended_l2", patched(72, "Q", 1 << 4), UnsupportedImageFeature),
    Attack("version_1", patched(4, "I", 1), UnsupportedImageFeature),
    Attack("version_4", patched(4, "I", 4), UnsupportedImageFeature),
    Attack("encrypted", patched(32, "I", 2), UnsupportedImageFeature),
    Attack("vmdk_flat_extent", vmdk_flat, FormatMismatch),
    Attack("vmdk_flat_extent_called_raw", vmdk_flat, FormatMismatch, "raw"),
    Attack("vmdk_hidden_behind_lines", vmdk_after_spaces, NotAnImage),
    Attack("qcow2_called_raw", plain, FormatMismatch, "raw"),
    Attack("l1_table_of_gigabytes", patched(36, "I", 1 << 31), MalformedImage),
    Attack("l1_table_too_small", patched(36, "I", 0), MalformedImage),
    Attack("l1_table_in_no_cluster", patched(40, "Q", 12345), MalformedImage),
    Attack("l1_table_behind_the_end", patched(40, "Q", 1 << 40), TruncatedImage),
    Attack("refcount_table_of_gigabytes", patched(56, "I", 1 << 20), MalformedImage),
    Attack("refcount_table_behind_the_end", patched(48, "Q", 1 << 40), TruncatedImage),
    Attack("clusters_of_gigabytes", patched(20, "I", 31), MalformedImage),
    Attack("snapshots_without_number", patched(60, "I", 1 << 30), MalformedImage),
    Attack("disk_of_exabytes", patched(24, "Q", 1 << 63), MalformedImage),
    Attack("disk_of_a_terabyte", lambda p, s: plain(p, s, size="1T"), ImageTooLarge),
    Attack("marked_corrupt", patched(72, "Q", 2), MalformedImage),
    Attack("refcounts_too_wide", patched(96, "I", 63), MalformedImage),
    Attack("header_of_no_length", patched(100, "I", 0), MalformedImage),
    Attack("l2_table_behind_the_end", l2_elsewhere, TruncatedImage, stops_early=False),
    Attack("refcounts_that_lie", refcounts_zeroed, MalformedImage, stops_early=False),
    Attack("cut_in_its_header", cut(60), TruncatedImage),
    Attack("cut_in_its_tables", cut(100_000), TruncatedImage),
    Attack("cut_in_its_data", cut(700_000), TruncatedImage, stops_early=False),
    Attack("empty", holding(b""), NotAnImage),
    Attack("empty_called_raw", holding(b""), NotAnImage, "raw"),
    Attack("text", holding(b"no image at all " * MIB), NotAnImage),
    Attack("web_page_called_raw", holding(b"<!DOCTYPE html>" + b" " * MIB), NotAnImage, "raw"),
    Attack("gzip", gzipped, NotAnImage),
    Attack("gzip_called_raw", gzipped, NotAnImage, "raw"),
    Attack("luks", holding(_LUKS), FormatMismatch),
    Attack("luks_called_raw", holding(_LUKS), FormatMismatch, "raw"),
    Attack("vhd", holding(_VHD), FormatMismatch),
    Attack("vhd_called_raw", holding(_VHD), FormatMismatch, "raw"),
    *(
        Attack(f"{other}{suffix}", foreign(other), FormatMismatch, declared)
        for other in ("vdi", "vhdx", "qed", "vmdk", "parallels")
        for suffix, declared in (("", "qcow2"), ("_called_raw", "raw"))
    ),
)
