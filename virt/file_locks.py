"""Whether file locks cross from host to host: one holds a lock, the other asks for it.

QEMU locks its disks by the same kind of lock on the same bytes, so what is seen here is what would
stop a second QEMU. On many network file systems locks are the business of a single host.
"""

import errno
import fcntl
import os
import struct
import threading
from pathlib import Path

# Of QEMU's own, which begins its locks at byte 100.
LOCK_BYTE = 100

# Locks of these reach from host to host; what others do only their operators know.
LOCKING_TYPES = frozenset(
    {"nfs", "nfs4", "ceph", "fuse.ceph", "gfs2", "ocfs2", "gpfs", "fuse.glusterfs"}
)
# Libvirt takes these for shared by their name, and no others.
SHARED_TYPES = LOCKING_TYPES | {"afs", "cifs", "smb3", "fuse.quobyte", "acfs"}


class LockHolder:
    """Locks that this process holds, by path, until they are let go or the process ends."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}
        self._guard = threading.Lock()

    def hold(self, path: Path) -> bool:
        """Hold a lock on a file that exists; holding it again is fine.

        Returns:
            False when somebody else has it, or the file system knows no locks.
        """
        with self._guard:
            if path in self._held:
                return True
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if not _try_lock(descriptor):
                os.close(descriptor)
                return False
            self._held[path] = descriptor
            return True

    def let_go(self, path: Path) -> None:
        """Give a lock back; none is fine."""
        with self._guard:
            descriptor = self._held.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


def is_locked_elsewhere(path: Path) -> bool:
    """Tell whether somebody else's lock on a file is seen from here; a look changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, otherwise=True)
    finally:
        os.close(descriptor)


def get_file_system_type(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of the file system that a path is on, as the kernel names it.

    Args:
        path: absolute; its nearest ancestor that is a mount counts.
        mounts: the kernel's table.
    """
    wanted, best, found = os.path.realpath(path), "", ""
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        is_above = point == "/" or wanted == point or wanted.startswith(f"{point}/")
        # The last of several mounts on one point is the one that is seen.
        if is_above and len(point) >= len(best):
            best, found = point, right.split()[0]
    return found


def _try_lock(descriptor: int, *, otherwise: bool = False) -> bool:
    """Lock one byte; ``otherwise`` is what a file system without locks answers."""
    wish = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCK_BYTE, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wish)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else otherwise
    return True
