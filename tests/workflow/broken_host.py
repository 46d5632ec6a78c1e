"""Hosts that are broken for real, and mended afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from innkeeper.operation import Operation
from lab.handle import Lab

GUESTS_DIRECTORY = "/var/lib/innkeeper/instances"
CONSOLES_DIRECTORY = "/var/lib/innkeeper/consoles"


@contextmanager
def full_disk(lab: Lab, host: str, directory: str = GUESTS_DIRECTORY) -> Iterator[None]:
    """Give a host a file system, for its guests' files, that has no room for a single one."""
    options = "size=4k,nr_inodes=1"
    lab.exec(host, ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory])
    try:
        yield
    finally:
        lab.exec(host, ["umount", "-l", directory])


def get_chosen_host(operation: Operation) -> str:
    """Return the host that an operation has been given."""
    chosen = operation.view().dst_host
    assert chosen is not None
    return chosen
