"""The processes of a lab: started, reaped and signalled by the supervisor.

The supervisor is init of its own PID namespace, so every orphan (a QEMU whose libvirtd was killed)
becomes its child and must be reaped at once: libvirt takes an unreaped QEMU for a living one and
then waits seconds in every destroy and migration. One `waitpid(-1)` loop therefore reaps all
children, and nothing here may call `Popen.wait`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lab.errors import LabError


@dataclass(eq=False)
class Process:
    """A child of the supervisor.

    Attributes:
        pid: its number inside the lab's PID namespace, for signals from the supervisor.
        outer_pid: its number as the rest of the machine sees it.
        exit_code: None while it runs; negative for the signal that ended it.
    """

    pid: int
    outer_pid: int
    started_at: float
    exit_code: int | None = None
    exited_at: float | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.exit_code is None

    async def wait(self, timeout_s: float) -> bool:
        """Wait until the process has been reaped; return False when the time is up first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.gone.wait()
        except TimeoutError:
            return False
        return True


class ProcessTable:
    """Starts children and reaps every process that ends in the lab's PID namespace."""

    def __init__(self, outer_proc_fd: int) -> None:
        self._outer_proc_fd = outer_proc_fd
        self._living: dict[int, tuple[Process, subprocess.Popen[bytes]]] = {}

    def watch(self) -> None:
        """Begin to reap, from the running event loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        stderr: IO[bytes] | int = subprocess.STDOUT,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Start a child in a session of its own."""
        child = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            outer_pid = self.outer_pid(child.pid)
        except BaseException:
            # Reaped like an orphan; without a code Popen would later wait for that number, which
            # may by then be another child's.
            child.kill()
            child.returncode = -signal.SIGKILL
            raise
        process = Process(child.pid, outer_pid, time.time())
        self._living[child.pid] = (process, child)
        return process

    async def run(
        self,
        *argv: str,
        stdin: str = "",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Run a command to its end and return what it wrote.

        Raises:
            LabError: it failed or did not end in time; the message carries its output.
        """
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
            given.write(stdin.encode())
            given.seek(0)
            process = self.spawn(argv, stdin=given, stdout=output, env=env, cwd=cwd)
            ended = await process.wait(timeout_s)
            if not ended and process.running:
                send_signal(process.pid, signal.SIGKILL)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if not ended:
            raise LabError(f"`{' '.join(argv)}` did not end within {timeout_s:g} s:\n{text}")
        if process.exit_code != 0:
            raise LabError(f"`{' '.join(argv)}` failed ({process.exit_code}):\n{stdin}{text}")
        return text

    def outer_pid(self, pid: int) -> int:
        """Return a process's number outside the lab's PID namespace.

        A pidfd's fdinfo names the process as the PID namespace of the *proc mount* sees it, and the
        supervisor keeps a descriptor of the machine's own /proc.
        """
        pidfd = os.pidfd_open(pid)
        try:
            entry = os.open(f"self/fdinfo/{pidfd}", os.O_RDONLY, dir_fd=self._outer_proc_fd)
            with open(entry, encoding="ascii") as info:
                for line in info:
                    if line.startswith("Pid:"):
                        return int(line.split()[1])
        finally:
            os.close(pidfd)
        raise LabError(f"the kernel does not say which process {pid} is outside the lab")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self._living:
                continue  # an orphan: reaping it was all there was to do
            process, child = self._living.pop(pid)
            process.exit_code = child.returncode = os.waitstatus_to_exitcode(status)
            process.exited_at = time.time()
            process.gone.set()


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process of the lab's PID namespace; one that is already gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


async def stop(process: Process, number: signal.Signals, grace_s: float) -> None:
    """Ask a process to end, and kill it when it has not ended within the grace."""
    if not process.running:
        return
    send_signal(process.pid, number)
    # A stopped process handles no signal but KILL and CONT.
    send_signal(process.pid, signal.SIGCONT)
    if not await process.wait(grace_s):
        send_signal(process.pid, signal.SIGKILL)
        await process.wait(10.0)
