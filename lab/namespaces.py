"""Anonymous namespaces, each kept alive by one sleeping process.

No name is registered anywhere (no `ip netns add`, no bind mount of `/proc/PID/ns/…`): when the
holder dies, and it dies with the supervisor, its namespaces, veths, bridges and mounts are gone.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.processes import Process, ProcessTable


@dataclass(frozen=True)
class Namespaces:
    """Namespaces that live as long as their holder does."""

    name: str
    kinds: tuple[str, ...]
    holder: Process

    def command(self, argv: Sequence[str], cwd: Path = Path("/")) -> list[str]:
        """Return the command that runs ``argv`` in here, in one process (no fork in between)."""
        flags = [f"--{kind}" for kind in self.kinds]
        if "mount" in self.kinds:
            # Entering resets the root directory too, which matters when the lab runs in a chroot.
            flags.append("--root")
        target = ["nsenter", f"--target={self.holder.pid}", *flags, "--"]
        # Entering a mount namespace moves the working directory to its root.
        return [*target, "env", f"--chdir={cwd}", *argv]


async def hold(
    table: ProcessTable, name: str, kinds: tuple[str, ...], setup: Sequence[Sequence[str]] = ()
) -> Namespaces:
    """Create namespaces, run the setup commands inside, and keep them open.

    Raises:
        LabError: a setup command failed.
    """
    script = "\n".join(
        [
            "set -e",
            *(shlex.join(command) for command in setup),
            "echo ready",
            f"exec -a {shlex.quote(f'innkeeper-lab {name}')} sleep infinity >/dev/null 2>&1",
        ]
    )
    flags = [f"--{kind}" for kind in kinds]
    if "mount" in kinds:
        flags += ["--propagation=private"]
    read_end, write_end = os.pipe()
    try:
        holder = table.spawn(["unshare", *flags, "bash", "-c", script], stdout=write_end)
    finally:
        os.close(write_end)
    said = await _read_to_end(read_end)
    if not said.endswith("ready\n"):
        raise LabError(
            f"the namespaces of {name} could not be set up: {said.strip()}"
            "\nThe lab needs root and the right to mount (in a container: --privileged)."
        )
    return Namespaces(name, kinds, holder)


async def _read_to_end(fd: int) -> str:
    """Read a pipe until its last writer closes it, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    chunks: list[bytes] = []
    ended = asyncio.Event()

    def read() -> None:
        chunk = os.read(fd, 65536)
        chunks.append(chunk)
        if not chunk:
            ended.set()

    loop.add_reader(fd, read)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return b"".join(chunks).decode(errors="replace")
