"""The host's network links as the kernel shows them: bridges, guests' ports, and their changes.

Whoever looks must be in the hypervisor's own network namespace, or sees other links.
"""

import errno
import fcntl
import select
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SYSFS = Path("/sys/class/net")
_IFF_UP = 0x1
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_RTMGRP_LINK = 0x1
_MESSAGE_MAX_BYTES = 65536


def find_bridge_problem(name: str, sysfs: Path = SYSFS) -> str | None:
    """Return why a bridge cannot carry guests, as a sentence's end; None when it can.

    Args:
        name: the bridge's name.
        sysfs: where the kernel shows its links.
    """
    if not (sysfs / name).exists():
        return f"bridge {name} does not exist"
    if not (sysfs / name / "bridge").is_dir():
        return f"{name} is not a bridge"
    if not _is_up(sysfs / name):
        return f"bridge {name} is down"
    return None


def find_port_problem(port: str, bridge: str, sysfs: Path = SYSFS) -> str | None:
    """Return why a guest's port does not lead to its bridge yet; None when it does.

    Args:
        port: the host's end of the guest's network card, a tap device.
        bridge: the bridge that it belongs to.
        sysfs: where the kernel shows its links.
    """
    if not (sysfs / port).exists():
        return f"port {port} does not exist"
    try:
        master = (sysfs / port / "master").readlink().name
    except OSError:
        return f"port {port} is on no bridge, not on {bridge}"
    if master != bridge:
        return f"port {port} is on {master}, not on {bridge}"
    if not _is_up(sysfs / port):
        return f"port {port} is down"
    return find_bridge_problem(bridge, sysfs)


def set_port_down(port: str) -> None:
    """Take a guest's port down: nothing goes in or out there; one that is gone is fine.

    Args:
        port: the host's end of the guest's network card.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH22x", port.encode(), 0)
        try:
            flags = struct.unpack_from("16sH", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
            request = struct.pack("16sH22x", port.encode(), flags & ~_IFF_UP)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise


def _is_up(link: Path) -> bool:
    try:
        return bool(int((link / "flags").read_text(), 16) & _IFF_UP)
    except (OSError, ValueError):
        # It went while it was looked at.
        return False


class LinkChanges:
    """Wakes at any change of any link from the moment it is made: subscribe first, then look."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _RTMGRP_LINK))
        # Not select(): a busy worker has more file descriptors than that can take.
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Wait for a change; False when none came within ``timeout_s`` seconds."""
        end = time.monotonic() + timeout_s
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            return False
        # What has changed is not read: the links themselves tell, and they tell it as it is now.
        while time.monotonic() < end:
            try:
                self._socket.recv(_MESSAGE_MAX_BYTES)
            except BlockingIOError:
                break
            except OSError as exc:
                # The kernel dropped messages; that, too, is a change.
                if exc.errno != errno.ENOBUFS:
                    raise
        return True

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
