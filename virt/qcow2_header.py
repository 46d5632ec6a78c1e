"""The header of a qcow2 image, judged before anything of QEMU has opened it.

The bounds are QEMU's own, so that nothing passes here that QEMU would choke on; references to
other files and what is not known here are refused.
"""

import struct
from dataclasses import dataclass

from innkeeper.errors import (
    BackingFile,
    ExternalDataFile,
    MalformedImage,
    TruncatedImage,
    UnsafeImage,
    UnsupportedImageFeature,
)

HEADER_BYTES = 112
_V2_BYTES = 72
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_L1_MAX_BYTES = 32 << 20
_REFCOUNTS_MAX_BYTES = 8 << 20
_SNAPSHOTS_MAX = 65536
_SIZE_MAX_BYTES = 1 << 62


@dataclass(frozen=True)
class Qcow2Header:
    """What the header says of where things are.

    Args:
        virtual_size_bytes: of the disk a guest would see.
        ends: for each table, its name and the first byte behind it.
    """

    virtual_size_bytes: int
    ends: tuple[tuple[str, int], ...]

    def require_within(self, file_bytes: int) -> None:
        """Refuse a file that ends before its own tables do.

        Raises:
            TruncatedImage: it does.
        """
        for name, end in self.ends:
            if end > file_bytes:
                raise _refuse(
                    TruncatedImage,
                    f"its {name} would end at byte {end}, the file has {file_bytes} bytes",
                )


def parse_header(data: bytes) -> Qcow2Header:
    """Judge the first HEADER_BYTES of a file that begins like a qcow2 image.

    Raises:
        BackingFile, ExternalDataFile, UnsupportedImageFeature, MalformedImage, TruncatedImage.
    """
    if len(data) < _V2_BYTES:
        raise _refuse(TruncatedImage, f"its header has {len(data)} bytes of {_V2_BYTES}")
    (
        _magic,
        version,
        backing_offset,
        backing_bytes,
        cluster_bits,
        size_bytes,
        encryption,
        l1_entries,
        l1_offset,
        refcounts_offset,
        refcounts_clusters,
        snapshots,
        snapshots_offset,
    ) = _V2.unpack_from(data)
    if version not in (2, 3):
        raise _refuse(UnsupportedImageFeature, f"qcow2 version {version}, known are 2 and 3")
    if backing_offset or backing_bytes:
        raise _refuse(BackingFile, "it rests on another file, a backing file")
    if version == 3:
        _judge_features(data)
    if encryption:
        raise _refuse(UnsupportedImageFeature, f"it is encrypted (method {encryption})")
    if not 9 <= cluster_bits <= 21:
        raise _refuse(MalformedImage, f"clusters of 2^{cluster_bits} bytes")
    if size_bytes > _SIZE_MAX_BYTES:
        raise _refuse(MalformedImage, f"a disk of {size_bytes} bytes")
    cluster = 1 << cluster_bits
    # One entry of the L1 table covers a cluster full of L2 entries of eight bytes.
    needed = -(-size_bytes // (cluster * (cluster // 8)))
    if l1_entries * 8 > _L1_MAX_BYTES:
        raise _refuse(MalformedImage, f"an L1 table of {l1_entries * 8} bytes")
    if l1_entries < needed:
        raise _refuse(MalformedImage, f"an L1 table of {l1_entries} entries where {needed} belong")
    if refcounts_clusters == 0 or refcounts_clusters * cluster > _REFCOUNTS_MAX_BYTES:
        raise _refuse(MalformedImage, f"a refcount table of {refcounts_clusters} clusters")
    if snapshots > _SNAPSHOTS_MAX:
        raise _refuse(MalformedImage, f"{snapshots} snapshots")
    tables = [("refcount table", refcounts_offset, refcounts_clusters * cluster)]
    if l1_entries:
        tables.append(("L1 table", l1_offset, l1_entries * 8))
    if snapshots:
        tables.append(("snapshot table", snapshots_offset, snapshots * 40))
    for name, offset, _ in tables:
        if offset % cluster or offset == 0:
            raise _refuse(MalformedImage, f"its {name} at byte {offset}, which no cluster begins")
    return Qcow2Header(size_bytes, tuple((name, at + size) for name, at, size in tables))


def _judge_features(data: bytes) -> None:
    if len(data) < _V2_BYTES + _V3.size:
        raise _refuse(TruncatedImage, f"its header has {len(data)} bytes")
    features, _, _, refcount_order, header_bytes = _V3.unpack_from(data, _V2_BYTES)
    if features & _DATA_FILE:
        raise _refuse(ExternalDataFile, "its data are in another file, an external data file")
    unknown = features & ~(_DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION)
    if unknown:
        raise _refuse(UnsupportedImageFeature, f"feature bits that are not known: {unknown:#x}")
    if features & _CORRUPT:
        raise _refuse(MalformedImage, "it is marked as corrupt")
    if refcount_order > 6:
        raise _refuse(MalformedImage, f"refcounts of 2^{refcount_order} bits")
    if header_bytes < _V2_BYTES + _V3.size or header_bytes % 8:
        raise _refuse(MalformedImage, f"a header of {header_bytes} bytes")


def _refuse(kind: type[UnsafeImage], reason: str) -> UnsafeImage:
    return kind(f"The image is refused because it is unsafe to use: {reason}.", {"reason": reason})
