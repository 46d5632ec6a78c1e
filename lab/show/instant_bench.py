"""Instant boot against fetch-then-boot: one raw image, never cached, over one bounded link."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from innkeeper import Innkeeper
from lab.handle import Lab
from lab.network import Subnet
from lab.range_server import RangeServer
from lab.show.measure import spread

IMAGE_BYTES = 1 << 30
LINK_MB_S = 50
BOOT_S = 600.0
PIECE_BYTES = 1 << 20


def measure_instant_boot(lab: Lab, client: Innkeeper, pairs: int) -> dict[str, Any]:
    """Time cold spawns until the console speaks, alternating between the two ways.

    Args:
        lab: a running lab with workers.
        client: its client.
        pairs: how many of each.
    """
    path = lab.layout.root / "bench.raw"
    _make_image(Path(lab.description.images.guest), path)
    address = Subnet(lab.description.subnet).services_address
    times_ms: dict[str, list[float]] = {"instant": [], "fetch": []}
    read_mib: dict[str, list[float]] = {"instant": [], "fetch": []}
    for number in range(pairs):
        for delivery in ("instant", "fetch"):
            digest = _make_unlike_any(path)
            server = RangeServer(path, address, port=80, mib_s=LINK_MB_S * 1e6 / 2**20)
            name = f"bench-{delivery}-{number}"
            fields: dict[str, Any] = {
                "image": server.url,
                "sha256": digest,
                "image_format": "raw",
                "delivery": delivery,
                "memory_mib": 256,
                "wait": "console",
                "boot_timeout_s": BOOT_S,
                "host": lab.hosts[0],
            }
            with server:
                started = time.perf_counter()
                client.spawn(name=name, **fields).wait(BOOT_S)
                times_ms[delivery].append((time.perf_counter() - started) * 1000)
                read_mib[delivery].append(server.sent_bytes / 2**20)
                client.delete(name).wait(BOOT_S)
    path.unlink()
    instant, fetch = spread(times_ms["instant"]), spread(times_ms["fetch"])
    return {
        "pairs": pairs,
        "image_mib": IMAGE_BYTES // 2**20,
        "link_mb_s": LINK_MB_S,
        "instant_to_console_ms": instant,
        "fetch_to_console_ms": fetch,
        "instant_read_mib": spread(read_mib["instant"]),
        "times_faster_p50": round(fetch["p50"] / instant["p50"], 2),
    }


def _make_image(guest: Path, path: Path) -> None:
    """Make a raw image of the lab's guest, filled up with bytes that no file system can skip."""
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(guest), str(path)], check=True
    )
    with path.open("ab") as file:
        while file.tell() < IMAGE_BYTES:
            file.write(os.urandom(min(PIECE_BYTES, IMAGE_BYTES - file.tell())))


def _make_unlike_any(path: Path) -> str:
    """Change the last bytes, so that no cache has the image; return its digest."""
    with path.open("r+b") as file:
        file.seek(IMAGE_BYTES - 16)
        file.write(uuid.uuid4().bytes)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
