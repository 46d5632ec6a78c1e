"""Looks at packets inside the lab's namespaces, with sockets of the kernel and nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.waiting import PATIENCE_S

# Counts, by TCP port of the other end, the packets sent to it with data, and those with the mark.
_SNIFF = """
import json, select, socket, struct, sys
device, address, mark = sys.argv[1], socket.inet_aton(sys.argv[2]), sys.argv[3].encode()
seen = {}
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 1 << 27)  # SO_RCVBUFFORCE
wire.bind((device, 3))
print("ready", flush=True)
left = None
while left is None or select.select([wire], [], [], 0)[0]:
    if left is None and sys.stdin in select.select([sys.stdin, wire], [], [])[0]:
        left = sys.stdin.read()
        continue
    packet = wire.recv(1 << 17)
    if packet[12:14] != b"\\x08\\x00" or packet[23] != 6 or packet[30:34] != address:
        continue
    start = 14 + (packet[14] & 15) * 4
    port, = struct.unpack("!H", packet[start + 2:start + 4])
    data = packet[start + (packet[start + 12] >> 4) * 4:14 + struct.unpack("!H", packet[16:18])[0]]
    if data:
        count = seen.setdefault(port, [0, 0, 0])
        count[0] += 1
        count[1] += len(data)
        count[2] += mark in data
print(json.dumps(seen))
"""


@dataclass
class Flow:
    """What went to one TCP port.

    Attributes:
        packets: that carried data.
        marked: of these, those in which the mark stood in plain text.
    """

    packets: int
    bytes: int
    marked: int


@dataclass
class Wire:
    """What a capture saw, by the TCP port at the other end; filled when it ends."""

    flows: dict[int, Flow] = field(default_factory=dict)

    def to_qemu(self) -> dict[int, Flow]:
        """What went to QEMU's own ports: memory to one, disks to another."""
        return {port: flow for port, flow in self.flows.items() if 49152 <= port <= 49215}


@contextmanager
def sniffed(pid: int, device: str, address: str, mark: str) -> Iterator[Wire]:
    """Capture what is sent through a device to an address, while the body runs.

    Args:
        pid: a process in the network namespace.
        device: where to listen.
        address: IPv4 address of the other end.
        mark: text to look for in the data.
    """
    wire = Wire()
    with _inside(pid, _SNIFF, [device, address, mark]) as process:
        yield wire
        seen = json.loads(_end(process))
    wire.flows = {int(port): Flow(*counts) for port, counts in seen.items()}


@contextmanager
def _inside(pid: int, script: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a network namespace from the moment it is ready."""
    process = subprocess.Popen(
        ["nsenter", f"--target={pid}", "--net", sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _end(process: subprocess.Popen[Any]) -> str:
    """Tell the script that it is over, and return what it has to say."""
    out, _ = process.communicate(timeout=PATIENCE_S)
    return str(out)
