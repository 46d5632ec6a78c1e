"""A lab as a Python object, for tests, the demo and benchmarks.

with Lab.up(directory, hosts=2, workers=True, owner_pid=os.getpid()) as lab:
    lab.kill("libvirtd:hv-a")
    lab.start("libvirtd:hv-a")
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import environment, errors, launch, protocol
from lab.description import Description
from lab.layout import Layout

_SUPERVISOR_REAPED_S = 10.0


@dataclass
class Lab:
    """A running lab; leaving the context takes it down."""

    layout: Layout
    description: Description
    _supervisor: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def up(
        cls,
        directory: Path,
        *,
        hosts: int = 2,
        workers: bool = True,
        flower: bool = False,
        gluster: bool = False,
        fresh: bool = False,
        owner_pid: int | None = None,
        env: Mapping[str, str] | None = None,
        show: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Bring up a lab and return when all of it is ready.

        Args:
            directory: its files; kept by `down`, so that a later `up` finds its guests again.
            hosts: how many hypervisor hosts.
            workers: run Innkeeper's own processes too.
            flower: run Flower too (with workers).
            gluster: mount a GlusterFS volume on every host, as the pool ``gluster``.
            fresh: forget what an earlier lab left in the directory.
            owner_pid: end the lab when this process ends, however it ends.
            env: more variables for Innkeeper's processes.
            show: is told what is being done.

        Raises:
            LabError: it could not come up.
        """
        layout = Layout(directory.resolve())
        if fresh:
            launch.down(layout, wipe=True)
        supervisor = launch.up(
            layout,
            hosts=hosts,
            workers=workers,
            flower=flower and workers,
            gluster=gluster,
            owner_pid=owner_pid,
            env=env or {},
            show=show,
        )
        return cls(layout, _describe(layout), supervisor)

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """Return the lab that runs in a directory.

        Raises:
            NotRunningError: none does.
        """
        layout = Layout(directory.resolve())
        return cls(layout, _describe(layout))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the hosts."""
        return tuple(host.name for host in self.description.hosts)

    def env(self) -> dict[str, str]:
        """Return the variables for programs outside the hosts (what `lab env` prints)."""
        return environment.for_callers(self.description)

    def host_env(self, host: str) -> dict[str, str]:
        """Return all variables of a host's worker."""
        return self.env() | environment.for_host(self.description, host)

    def libvirt_uri(self, host: str) -> str:
        """Return the URI of a host's libvirt, usable from outside the host."""
        return self.description.host(host).libvirt_uri

    def status(self) -> dict[str, Any]:
        """Return the roles with their processes, and the cuts of the network."""
        status: dict[str, Any] = self._call("status")
        return status

    def role(self, name: str) -> dict[str, Any]:
        """Return one role's status."""
        return next(role for role in self.status()["roles"] if role["role"] == name)

    def kill(self, role: str, number: signal.Signals = signal.SIGKILL) -> dict[str, Any]:
        """Signal the process of a role (or ``qemu:HOST:DOMAIN``); wait for its end if it ends."""
        killed: dict[str, Any] = self._call("kill", role=role, signal=int(number))
        return killed

    def start(self, role: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Start a role's process and wait until it is ready; nothing happens if it runs."""
        started: dict[str, Any] = self._call("start", role=role, env=dict(env or {}))
        return started

    def cut(self, a: str, b: str, *, one_way: bool = False, port: int | None = None) -> None:
        """Drop packets between two hosts, or a host and ``services``.

        Args:
            a: a host, or ``services``.
            b: a host, or ``services``.
            one_way: drop only what goes from ``a`` to ``b``.
            port: drop only TCP from or to this port.
        """
        self._call("cut", a=a, b=b, one_way=one_way, port=port)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Undo the cuts between two members of the network, or all cuts."""
        pair = [a, b] if a is not None and b is not None else None
        self._call("heal", pair=pair)

    def host_command(self, host: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` in a host's namespaces."""
        target = f"--target={self.description.host(host).holder_pid}"
        return ["nsenter", target, "--mount", "--root", "--net", "--uts", "--pid", "--", *argv]

    def exec(
        self, host: str, argv: Sequence[str], *, timeout_s: float | None = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host and return its output."""
        return subprocess.run(
            self.host_command(host, argv),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
        )

    def down(self, *, wipe: bool = False) -> None:
        """Take the lab down; returns when nothing of it is left (but its files, unless wiped)."""
        launch.down(self.layout, wipe=wipe)
        if self._supervisor is not None:
            self._supervisor.wait(30)

    def _call(self, verb: str, **arguments: Any) -> Any:
        try:
            return protocol.call(self.layout.control_socket, verb, **arguments)
        except (protocol.EndedError, protocol.NotRunningError) as error:
            raise type(error)(f"{error}{self._how_it_ended()}") from None

    def _how_it_ended(self) -> str:
        """Return what the supervisor itself could not log, above all the signal that killed it."""
        if self._supervisor is None:
            return ""
        try:
            code = self._supervisor.wait(_SUPERVISOR_REAPED_S)
        except subprocess.TimeoutExpired:
            return "\n(its process has not ended)"
        match code:
            case 0:
                how = "in order"
            case errors.SUPERVISOR_FAILED:
                how = "by an error"
            case _:
                # The unshare between here and the supervisor passes a signal on as code 1.
                how = f"by a signal it could not catch, code {code}: killed, or out of memory?"
        return f"\n(it ended {how})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()


def _describe(layout: Layout) -> Description:
    return Description.from_dict(protocol.call(layout.control_socket, "describe"))
