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


# Asks an address every few milliseconds, notes when each question was answered, and on which device
# of the switch the frames of a guest's card came in.
_PING = """
import json, select, socket, struct, sys, time
address, interval_s, mac = sys.argv[1], float(sys.argv[2]), bytes.fromhex(sys.argv[3])
echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
def ask(number):
    body = struct.pack("!HHHHH", 0x0800, 0, 4242, number & 0xffff, 0)
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    try:
        echo.sendto(body, (address, 0))
    except OSError:
        pass
answered, announced, number, next_at = [], [], 0, time.time()
print("ready", flush=True)
while True:
    ready, _, _ = select.select([echo, wire, sys.stdin], [], [], max(0, next_at - time.time()))
    now = time.time()
    if echo in ready:
        packet = echo.recv(4096)
        if socket.inet_ntoa(packet[12:16]) == address and packet[20] == 0:
            answered.append(now)
    if wire in ready:
        packet, (device, kind, *_) = wire.recvfrom(4096)
        if packet[6:12] == mac and kind in (0x0806, 0x8035):
            announced.append([now, device, "arp" if kind == 0x0806 else "rarp"])
    if sys.stdin in ready:
        break
    if now >= next_at:
        number += 1
        ask(number)
        next_at += interval_s
print(json.dumps([answered, announced]))
"""


@dataclass
class Answers:
    """When an address answered from outside, and where its announcements came in.

    Attributes:
        answered: seconds by the clock.
        announced: (seconds, device of the switch, "arp" or "rarp").
    """

    answered: list[float] = field(default_factory=list)
    announced: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def longest_gap_ms(self) -> float:
        """The longest time between two answers."""
        pairs = zip(self.answered, self.answered[1:], strict=False)
        return max((later - earlier) * 1000 for earlier, later in pairs)

    def announced_at(self, device: str) -> list[str]:
        """What came in at a device, in its order."""
        return [kind for _, where, kind in self.announced if where == device]


@contextmanager
def pinged(pid: int, address: str, mac: str, *, interval_s: float = 0.02) -> Iterator[Answers]:
    """Ask an address all the time while the body runs.

    Args:
        pid: a process in the network namespace to ask from.
        address: IPv4 address.
        mac: of its card.
        interval_s: seconds between two questions.
    """
    answers = Answers()
    arguments = [address, str(interval_s), mac.replace(":", "")]
    with _inside(pid, _PING, arguments) as process:
        yield answers
        answered, announced = json.loads(_end(process))
    answers.answered = answered
    answers.announced = [(at, device, kind) for at, device, kind in announced]


# Counts the frames that come in, by their source address.
_SOURCES = """
import json, select, socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
wire.bind((sys.argv[1], 3))
seen = {}
print("ready", flush=True)
while True:
    ready, _, _ = select.select([wire, sys.stdin], [], [])
    if wire in ready:
        packet, (_, _, kind, *_) = wire.recvfrom(4096)
        if kind != socket.PACKET_OUTGOING:
            source = packet[6:12].hex(":")
            seen[source] = seen.get(source, 0) + 1
    elif sys.stdin in ready:
        break
print(json.dumps(seen))
"""


@contextmanager
def sources_counted(pid: int, device: str) -> Iterator[dict[str, int]]:
    """Count the frames that come in at a device while the body runs; filled when it ends.

    Args:
        pid: a process in the network namespace.
        device: where to listen.
    """
    seen: dict[str, int] = {}
    with _inside(pid, _SOURCES, [device]) as process:
        yield seen
        seen.update(json.loads(_end(process)))
