"""Copies of raw files: shared extents where the file system can, else only the bytes that are."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from virt.storage.backend import Made, Watch

# From linux/fs.h; the standard library has no name for it.
_FICLONE = 0x40049409
_CANNOT_SHARE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM}
)
_CHUNK_BYTES = 16 << 20
_CLAIM_BYTES = 1 << 30


def clone_file(src: Path, dst: Path, *, may_share: bool, watch: Watch) -> Made:
    """Write a file's bytes into a new file, holes as holes.

    Args:
        src: not written to meanwhile.
        dst: must not exist.
        may_share: whether both may own the same blocks until one of them is written.
        watch: is told of the copied bytes, holes left out.

    Returns:
        Whether the blocks are shared, or were copied.

    Raises:
        OSError: the file system is full, or a file cannot be read or written.
    """
    with src.open("rb") as source, dst.open("xb") as target:
        if may_share and share_extents(source.fileno(), target.fileno()):
            return Made.REFLINK
        _copy_data(source.fileno(), target.fileno(), watch)
        os.ftruncate(target.fileno(), os.fstat(source.fileno()).st_size)
        return Made.COPY


def share_extents(source: int, target: int) -> bool:
    """Make one open file share all blocks of another; return whether the file system can."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_SHARE:
            return False
        raise
    return True


def claim_blocks(path: Path, size_bytes: int, watch: Watch) -> None:
    """Have the file system set blocks aside for a whole file; its bytes stay as they are.

    Raises:
        OSError: there is no room for it.
    """
    number = os.open(path, os.O_RDWR)
    try:
        for offset in range(0, size_bytes, _CLAIM_BYTES):
            watch.check()
            os.posix_fallocate(number, offset, min(_CLAIM_BYTES, size_bytes - offset))
    finally:
        os.close(number)


def _copy_data(source: int, target: int, watch: Watch) -> None:
    extents = list(_data_extents(source))
    total = sum(end - start for start, end in extents)
    done = 0
    for start, end in extents:
        os.lseek(target, start, os.SEEK_SET)
        offset = start
        while offset < end:
            watch.check()
            copied = os.sendfile(target, source, offset, min(_CHUNK_BYTES, end - offset))
            if copied == 0:
                raise OSError(errno.EIO, "the source has become shorter")
            offset += copied
            done += copied
            watch.on_progress(done, total)


def _data_extents(number: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is not a hole."""
    size_bytes, end = os.fstat(number).st_size, 0
    while end < size_bytes:
        try:
            start = os.lseek(number, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(number, start, os.SEEK_HOLE)
        yield start, end
