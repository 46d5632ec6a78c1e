"""Which errors of the operating system are a host's condition, and not a defect of ours."""

import errno
import os

from innkeeper.errors import HostUnsuitable

HOST_CONDITIONS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.ENODEV,
        errno.ENXIO,
        errno.ESTALE,
        errno.ENOTCONN,
    }
)


def find_host_fault(exc: OSError, host: str) -> HostUnsuitable | None:
    """Return the error of a host that is full, read-only or broken; None for anything else.

    Args:
        exc: what escaped from a step.
        host: where the step ran.
    """
    if exc.errno not in HOST_CONDITIONS:
        return None
    where = f" at {exc.filename}" if exc.filename else ""
    return HostUnsuitable(
        f"Host {host} failed by itself: {os.strerror(exc.errno)}{where}.",
        {
            "host": host,
            "errno": errno.errorcode[exc.errno],
            "hint": f"Look at the disks of {host}, and ask again.",
        },
    )
