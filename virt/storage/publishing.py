"""A file that is there whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from innkeeper.errors import HostUnsuitable, HypervisorError
from virt.identity import sync_directory


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Give a name to make a file under; at the end of the block it is durable and bears its own.

    What a dead predecessor left half-made is removed first.

    Args:
        path: absolute; its directory is made when missing.

    Raises:
        FileExistsError: somebody else was quicker; the caller compares.
        HostUnsuitable: the file system is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_half_made(path)
    own = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield own
        # Libvirt gives it to QEMU's user; nobody else has to read it.
        own.chmod(0o600)
        sync_file(own)
        # Unlike a rename, a link never replaces what is there.
        os.link(own, path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room_for(path) from error
        raise
    finally:
        remove_half_made(path)


def no_room_for(path: Path) -> HostUnsuitable:
    """Return the error that sends a guest to another host: this one's file system is full."""
    return HostUnsuitable(
        f"There is no room for the disk {path.name}.",
        {"path": str(path), "hint": "Free space in the pool, or ask for smaller disks."},
    )


def explain_full(error: HypervisorError, path: Path) -> HypervisorError | HostUnsuitable:
    """Return what a tool's failure means: a full file system is the host's, not the tool's."""
    return no_room_for(path) if os.strerror(errno.ENOSPC) in error.message else error


def remove_half_made(path: Path) -> None:
    """Remove what was begun under a path's name and is of no use to anybody."""
    # The second is what a converter has begun for our own unfinished name.
    for pattern in (f".{path.name}.*", f"..{path.name}.*"):
        for half_made in path.parent.glob(pattern):
            half_made.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Make a file's bytes and size survive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
