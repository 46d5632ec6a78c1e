"""One worker per node: a file lock that the kernel frees when its process dies."""

import fcntl
from pathlib import Path
from typing import IO


class NodeIsTaken(Exception):
    """Another living process has the node's name on this machine."""


def take_node_lock(directory: Path, node: str) -> IO[str]:
    """Take the node's lock for the life of this process.

    Args:
        directory: where lock files are.
        node: role and host.

    Returns:
        The open file; the lock lasts as long as it is open.

    Raises:
        NodeIsTaken: another worker of this node runs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"node-{node}.lock"
    handle = path.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise NodeIsTaken(f"another worker of {node} runs on this machine ({path})") from None
    return handle
