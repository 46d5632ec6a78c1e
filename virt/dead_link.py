"""Ends the TCP connections of migrations to a host that does not answer any more.

QEMU 7.2 waits for its disk mirror's connection in its main loop. When the link dies, libvirt gives
the migration up after its keepalive and asks QEMU to end the mirror; from then on QEMU answers
nobody and the guest stands still, until the kernel gives the connection up: a quarter of an hour.
A connection that the kernel is told to end is an error for QEMU at once, and the guest runs on.
"""

import ipaddress
import socket
import subprocess

import structlog

log = structlog.get_logger(__name__)

_TIMEOUT_S = 10.0


def cut_connections(address: str, first_port: int, last_port: int) -> int:
    """End every TCP connection from this host to some ports of another.

    Needs ``CAP_NET_ADMIN`` and a kernel with ``CONFIG_INET_DIAG_DESTROY``.

    Args:
        address: the other host's name or IP address.
        first_port: the lowest of its ports.
        last_port: the highest.

    Returns:
        How many there were; 0 also when this host cannot do it, which the log says.
    """
    count = 0
    for one in _resolve(address):
        ports = ["dport", ">=", f":{first_port}", "and", "dport", "<=", f":{last_port}"]
        command = ["ss", "--kill", "--tcp", "--numeric", "--no-header", "dst", one, "and", *ports]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("dead connections not ended", address=one, reason=str(error))
            continue
        count += len(done.stdout.splitlines())
        if done.returncode != 0:
            log.warning("dead connections not ended", address=one, reason=done.stderr[-300:])
    return count


def _resolve(address: str) -> list[str]:
    """Return the IP addresses of a host, in the form that ``ss`` takes."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    plain = {str(entry[4][0]).partition("%")[0] for entry in found}
    return sorted(str(ipaddress.ip_address(one)) for one in plain)
