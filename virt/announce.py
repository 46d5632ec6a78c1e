"""Tells switches, this host's bridge among them, where a guest's card is now.

QEMU announces a guest when its memory has arrived, and a guest with a virtio card speaks up itself
when it runs again. What neither does: speak up on the source when the guest stays there after all,
although the destination has announced it already.
"""

import errno
import os
import socket
import struct

_ETH_P_RARP = 0x8035
_BROADCAST = b"\xff" * 6
_ETHERNET, _IPV4 = 1, 0x0800
_REVERSE_REQUEST = 3

_RTM_NEWNEIGH = 28
_NLM_REQUEST_ACK_REPLACE_CREATE = 0x1 | 0x4 | 0x100 | 0x400
_NUD_REACHABLE = 0x02
_NTF_MASTER = 0x04
_NDA_LLADDR = 2
_NLMSG_ERROR = 2
_ANSWER_TIMEOUT_S = 1.0


def announce(port: str, bridge: str, mac: str) -> None:
    """Have frames for a guest's card sent to its port on this host.

    Args:
        port: the host's end of the card.
        bridge: the bridge that it is on.
        mac: the card's address.

    Raises:
        OSError: the kernel refused, as when the port is gone.
    """
    address = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((bridge, 0))
        wire.send(rarp_frame(address))
    _learn(socket.if_nametoindex(port), address)


def rarp_frame(address: bytes) -> bytes:
    """Return the frame by which QEMU announces a card, too: a RARP question about itself."""
    header = _BROADCAST + address + struct.pack("!H", _ETH_P_RARP)
    question = struct.pack("!HHBBH", _ETHERNET, _IPV4, 6, 4, _REVERSE_REQUEST)
    nobody = bytes(4)
    return (header + question + address + nobody + address + nobody).ljust(60, b"\0")


def _learn(port_index: int, address: bytes) -> None:
    """Put the card's address where the bridge would have put it, had the port sent a frame."""
    neighbour = struct.pack(
        "=BxxxiHBB", socket.AF_BRIDGE, port_index, _NUD_REACHABLE, _NTF_MASTER, 0
    )
    # The attribute is padded to four bytes; its own length says 4 + 6.
    attribute = struct.pack("=HH", 4 + len(address), _NDA_LLADDR) + address + b"\0\0"
    body = neighbour + attribute
    header = struct.pack(
        "=IHHII", 16 + len(body), _RTM_NEWNEIGH, _NLM_REQUEST_ACK_REPLACE_CREATE, 1, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_ANSWER_TIMEOUT_S)
        kernel.bind((0, 0))
        kernel.send(header + body)
        answer = kernel.recv(4096)
    _, kind = struct.unpack_from("=IH", answer)
    (code,) = struct.unpack_from("=i", answer, 16)
    if kind == _NLMSG_ERROR and code != 0:
        raise OSError(-code, f"{errno.errorcode.get(-code, code)}: {os.strerror(-code)}")
