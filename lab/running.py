"""What runs right now: start, kill and status by role."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.layout import Layout
from lab.processes import Process, ProcessTable, send_signal, stop
from lab.roles import Role

_PROBE_INTERVAL_S = 0.02
_KILL_WAIT_S = 10.0
_LOG_TAIL_LINES = 15
_QEMU = "qemu:"
_ENDING_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Running:
    """The lab's roles and the process, living or dead, that last played each."""

    def __init__(self, table: ProcessTable, layout: Layout) -> None:
        self._table = table
        self._layout = layout
        self._roles: dict[str, Role] = {}
        self._processes: dict[str, Process] = {}
        self._starting: dict[str, asyncio.Lock] = {}

    def add(self, roles: Iterable[Role]) -> None:
        """Make roles known; nothing is started."""
        for role in roles:
            self._roles[role.name] = role
            self._starting[role.name] = asyncio.Lock()

    def names(self, layer: int) -> list[str]:
        """Return the roles of one layer."""
        return [role.name for role in self._roles.values() if role.layer == layer]

    def is_running(self, name: str) -> bool:
        """Tell whether the role's process lives."""
        return name in self._processes and self._processes[name].running

    def status(self) -> list[dict[str, Any]]:
        """Return one entry per role, in the order they were made known."""
        return [self._status(name) for name in self._roles]

    async def start(self, name: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Start a role unless it runs, and wait until it is ready.

        Args:
            name: the role.
            env: variables for this one start, over the role's own.

        Raises:
            LabError: unknown role, or it died or was not ready in time; carries its log's tail.
        """
        role = self._role(name)
        async with self._starting[name]:
            if self.is_running(name):
                return self._status(name)
            self._layout.ready_file(name).unlink(missing_ok=True)
            log = self._layout.log(name)
            with log.open("ab") as output:
                process = self._table.spawn(
                    role.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**(role.env or os.environ), **(env or {})},
                    cwd=role.cwd,
                )
            self._processes[name] = process
            await self._until_ready(role, process, log)
            return self._status(name)

    async def kill(self, name: str, number: signal.Signals) -> dict[str, Any]:
        """Signal a role's process, or a guest's QEMU, and only that process.

        Waits until it is gone when the signal ends processes; TERM and INT may be taking longer
        than the wait, the returned status then says that it still runs.
        """
        if name.startswith(_QEMU):
            return await self._kill_qemu(name, number)
        role = self._role(name)
        process = self._processes.get(name)
        if process is None or not process.running:
            raise LabError(f"{name} is not running; start it with `scripts/lab start {name}`")
        send_signal(process.pid, number)
        if number in _ENDING_SIGNALS:
            await process.wait(max(role.stop_grace_s, _KILL_WAIT_S))
        return self._status(name)

    async def stop_all(self) -> None:
        """Stop all roles, the highest layer first, and every guest before its hypervisor."""
        for layer in sorted({role.layer for role in self._roles.values()}, reverse=True):
            if layer == 1:
                await self._stop_guests()
            await asyncio.gather(
                *(
                    stop(self._processes[name], role.stop_signal, role.stop_grace_s)
                    for name, role in self._roles.items()
                    if role.layer == layer and name in self._processes
                )
            )

    async def _stop_guests(self) -> None:
        for pid_file in self._layout.root.glob("hosts/*/run/libvirt/qemu/*.pid"):
            host = pid_file.relative_to(self._layout.root / "hosts").parts[0]
            pid = self._find_qemu(host, pid_file.stem)
            if pid is not None:
                # QEMU flushes its disks and leaves on TERM.
                send_signal(pid, signal.SIGTERM)

    async def _kill_qemu(self, name: str, number: signal.Signals) -> dict[str, Any]:
        try:
            _, host, domain = name.split(":", 2)
        except ValueError:
            raise LabError(f"{name!r} does not name a guest; write qemu:HOST:DOMAIN") from None
        pid = self._find_qemu(host, domain)
        if pid is None:
            raise LabError(f"no QEMU of a domain {domain!r} runs on {host}")
        outer_pid = self._table.outer_pid(pid)
        send_signal(pid, number)
        deadline = time.monotonic() + (_KILL_WAIT_S if number in _ENDING_SIGNALS else 0)
        while self._find_qemu(host, domain) == pid and time.monotonic() < deadline:
            await asyncio.sleep(_PROBE_INTERVAL_S)
        running = self._find_qemu(host, domain) == pid
        return {"role": name, "running": running, "pid": outer_pid}

    def _find_qemu(self, host: str, domain: str) -> int | None:
        """Find a guest's process by libvirt's pid file, checked: process numbers are reused."""
        try:
            pid = int(self._layout.domain_pid_file(host, domain).read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        is_it = any(word.startswith(f"guest={domain},".encode()) for word in command)
        return pid if is_it else None

    def _role(self, name: str) -> Role:
        if name not in self._roles:
            known = ", ".join(self._roles)
            raise LabError(f"there is no role {name!r} in this lab; it has: {known}")
        return self._roles[name]

    def _status(self, name: str) -> dict[str, Any]:
        process = self._processes.get(name)
        if process is None:
            return {"role": name, "running": False, "pid": None, "exit_code": None, "since": None}
        return {
            "role": name,
            "running": process.running,
            "pid": process.outer_pid,
            "exit_code": process.exit_code,
            "since": process.started_at if process.running else process.exited_at,
        }

    async def _until_ready(self, role: Role, process: Process, log: Path) -> None:
        deadline = time.monotonic() + role.ready_timeout_s
        while process.running:
            if await role.ready(process):
                return
            if time.monotonic() > deadline:
                raise LabError(
                    f"{role.name} runs but was not ready within {role.ready_timeout_s:g} s."
                    f" End of {log}:\n{_tail(log)}"
                )
            await asyncio.sleep(_PROBE_INTERVAL_S)
        raise LabError(
            f"{role.name} ended with code {process.exit_code} while it was starting."
            f" End of {log}:\n{_tail(log)}"
        )


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:])
