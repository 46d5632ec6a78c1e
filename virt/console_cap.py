"""Keeps a console's file small while QEMU writes to it: its oldest output goes, its end stays.

QEMU appends to the file for as long as the guest runs, and a guest may write without end. The
blocks of what is old are given back to the file system and leave a hole. The size that the file
shows, and with it every reader's offset, stays as it is; no byte is lost or doubled, and QEMU
notices nothing.
"""

import ctypes
import errno
import os
from pathlib import Path

BLOCK_BYTES = 4096
_STAT_BLOCK_BYTES = 512
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_CANNOT_PUNCH = (errno.EOPNOTSUPP, errno.ENOSYS)

_libc = ctypes.CDLL(None, use_errno=True)


def cap_console(path: Path, *, max_bytes: int) -> int:
    """Give back the older part of a console that takes more than its share of the disk.

    Half of the share is kept, so that a guest that talks steadily is not cut at every look.

    Args:
        path: the console's file.
        max_bytes: what it may take on the disk.

    Returns:
        Bytes given back; 0 for a file that is small enough, or is not there.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        before_bytes = _taken_bytes(file)
        if before_bytes <= max_bytes:
            return 0
        _drop_head(file, keep_bytes=max_bytes // 2)
        return max(0, before_bytes - _taken_bytes(file))
    finally:
        os.close(file)


def disk_bytes(path: Path) -> int:
    """Return what a file takes on the disk; 0 when there is none."""
    try:
        return path.stat().st_blocks * _STAT_BLOCK_BYTES
    except OSError:
        return 0


def _taken_bytes(file: int) -> int:
    return os.fstat(file).st_blocks * _STAT_BLOCK_BYTES


def _drop_head(file: int, *, keep_bytes: int) -> None:
    end = (os.fstat(file).st_size - keep_bytes) // BLOCK_BYTES * BLOCK_BYTES
    if end <= 0:
        return
    try:
        _punch(file, end)
    except OSError as exc:
        if exc.errno not in _CANNOT_PUNCH:
            raise
        _copy_and_truncate(file, keep_bytes)


def _punch(file: int, length: int) -> None:
    mode = _KEEP_SIZE | _PUNCH_HOLE
    if _libc.fallocate(file, mode, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _copy_and_truncate(file: int, keep_bytes: int) -> None:
    """Do the same where a file cannot have holes; what QEMU writes meanwhile may be lost."""
    kept = os.pread(file, keep_bytes, os.fstat(file).st_size - keep_bytes)
    os.ftruncate(file, 0)
    os.write(file, kept)
