"""One acting thread per guest on a host, whatever becomes of the thread.

A ``flock`` of a file per guest: the kernel frees it when its process dies, so a stuck old process
and a new one never act on one guest at once, and no lock is ever left behind. The lock belongs to
the open file, not to the process, so threads of one process exclude each other too.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from innkeeper.errors import Busy

POLL_S = 0.02


@contextmanager
def guest_lock(
    lock_dir: Path,
    instance_id: UUID,
    *,
    timeout_s: float,
    check: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Hold the guest's lock during the body.

    Args:
        lock_dir: a directory of this host, local; made when missing.
        instance_id: the guest.
        timeout_s: how long to wait for another holder; 0 to try once.
        check: called while waiting; may raise to stop it.

    Raises:
        Busy: another holder kept it all the time.
    """
    lock_dir.mkdir(parents=True, exist_ok=True)
    with file_lock(
        lock_dir / f"{instance_id}.lock",
        timeout_s=timeout_s,
        check=check,
        busy=lambda: Busy(
            f"Another thread or process of this host has held the lock of the guest {instance_id}"
            f" for {timeout_s:g} s.",
            {"instance_id": str(instance_id), "limit_s": timeout_s},
        ),
    ):
        yield


@contextmanager
def file_lock(
    path: Path,
    *,
    timeout_s: float | None,
    check: Callable[[], None],
    busy: Callable[[], Exception],
    is_shared: bool = False,
) -> Iterator[None]:
    """Hold a ``flock`` of a file during the body.

    Args:
        path: the file, made when missing and left behind empty: removing it would let two hold it.
        timeout_s: None to wait as long as ``check`` allows.
        check: called while waiting; may raise.
        busy: makes the error for a wait that took too long.
        is_shared: whether others may hold it too who ask for no more than that.
    """
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not _try_lock(number, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX):
            check()
            if end_s is not None and time.monotonic() >= end_s:
                raise busy()
            time.sleep(POLL_S)
        yield
    finally:
        os.close(number)


def _try_lock(number: int, kind: int) -> bool:
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
