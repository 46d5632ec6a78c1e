"""The ports that a migration uses, and one of them at which nobody listens."""

import socket

# QEMU's memory and disk streams arrive at free ports from here to there.
FIRST_MIGRATION_PORT = 49152
LAST_MIGRATION_PORT = 49215


def find_free_port() -> int | None:
    """Return the highest of QEMU's ports that is free here; None when all are taken.

    The way to it is tried from the source. A port at which an incoming QEMU listens must not be
    tried: it takes whoever comes first for its migration. Libvirt hands them out from below.
    """
    for port in range(LAST_MIGRATION_PORT, FIRST_MIGRATION_PORT - 1, -1):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            try:
                one.bind(("", port))
            except OSError:
                continue
            return port
    return None
