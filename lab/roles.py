"""The roles of a lab: for each process its command, how to tell it is ready, how to stop it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab import environment, gluster, hosts, services
from lab.description import Description
from lab.errors import LabError
from lab.hosts import Host
from lab.layout import REPOSITORY, Layout
from lab.namespaces import Namespaces
from lab.processes import Process, ProcessTable

Probe = Callable[[Process], Awaitable[bool]]

_READY_S = 90.0
"""Seconds a start takes when a few labs share a small machine, and then some; idle, one or two."""


@dataclass(frozen=True)
class Role:
    """A kind of process, of which at most one runs at a time.

    Attributes:
        ready: asked every few milliseconds after the start until it says yes.
        layer: down stops the highest layer first.
    """

    name: str
    command: list[str]
    ready: Probe
    ready_timeout_s: float
    layer: int
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 5.0


def service_roles(table: ProcessTable, layout: Layout, lab: Description) -> list[Role]:
    """Return Postgres and Redis."""
    endpoints = lab.endpoints
    return [
        Role(
            "postgres",
            services.postgres_command(endpoints),
            _succeeds(table, services.postgres_ready_command(endpoints)),
            ready_timeout_s=_READY_S,
            layer=0,
            # Fast shutdown: TERM would wait for every client to leave.
            stop_signal=signal.SIGINT,
        ),
        Role(
            "redis",
            services.redis_command(layout.redis, endpoints),
            _pings(endpoints.address, endpoints.redis_port),
            ready_timeout_s=_READY_S,
            layer=0,
        ),
    ]


def gluster_roles(
    table: ProcessTable, layout: Layout, server: Namespaces, booted: list[Host]
) -> list[Role]:
    """Return GlusterFS's server and, once its volume is there, a mount on every host."""
    return [
        Role(
            "glusterd",
            server.command(gluster.server_command(layout)),
            _succeeds(table, server.command(gluster.ready_command())),
            ready_timeout_s=_READY_S,
            layer=-1,
        ),
        *(
            Role(
                f"gluster:{host.name}",
                host.namespaces.command(gluster.mount_command(layout, host.name)),
                _succeeds(table, host.namespaces.command(gluster.mounted_command())),
                ready_timeout_s=_READY_S,
                layer=0,
            )
            for host in booted
        ),
    ]


def libvirtd_role(table: ProcessTable, lab: Description, host: Host) -> Role:
    """Return a host's libvirtd; it is ready when it can describe the domains it could run."""
    uri = lab.host(host.name).libvirt_uri
    return Role(
        f"libvirtd:{host.name}",
        host.namespaces.command(hosts.libvirtd_command()),
        _succeeds(table, ["virsh", "-q", "-c", uri, "domcapabilities", "--virttype", "qemu"]),
        ready_timeout_s=_READY_S,
        layer=1,
    )


def worker_roles(layout: Layout, lab: Description, booted: list[Host]) -> list[Role]:
    """Return Innkeeper's own processes."""
    roles = [_worker("control", layout, lab, ["control"])]
    for host in booted:
        name = f"worker:{host.name}"
        role = _worker(name, layout, lab, ["host", "--name", host.name])
        command = host.namespaces.command(role.command, cwd=REPOSITORY)
        env = environment.for_host(lab, host.name) | role.env
        roles.append(replace(role, command=command, env=env))
    roles.append(replace(_worker("beat", layout, lab, ["beat"]), ready=_alive_for(1.0)))
    if lab.flower:
        port = lab.endpoints.flower_port
        arguments = ["flower", "--address", "127.0.0.1", "--port", str(port)]
        flower = _worker("flower", layout, lab, arguments)
        roles.append(replace(flower, ready=_listens("127.0.0.1", port)))
    return roles


def migrate_command() -> list[str]:
    """Return the command that brings the database's schema up to date."""
    return [sys.executable, "-m", "workers", "migrate"]


def _worker(name: str, layout: Layout, lab: Description, arguments: list[str]) -> Role:
    return Role(
        name,
        [sys.executable, "-m", "workers", *arguments],
        _exists(layout.ready_file(name)),
        ready_timeout_s=_READY_S,
        layer=2,
        env=environment.for_process(lab, layout, name),
        cwd=REPOSITORY,
    )


def _exists(path: Path) -> Probe:
    async def probe(_: Process) -> bool:
        return path.exists()

    return probe


def _alive_for(seconds_s: float) -> Probe:
    async def probe(process: Process) -> bool:
        return not await process.wait(seconds_s)

    return probe


def _succeeds(table: ProcessTable, command: list[str]) -> Probe:
    async def probe(_: Process) -> bool:
        try:
            await table.run(*command, timeout_s=30)
        except LabError:
            return False
        return True

    return probe


def _listens(address: str, port: int) -> Probe:
    async def probe(_: Process) -> bool:
        try:
            _stream, writer = await asyncio.open_connection(address, port)
        except OSError:
            return False
        writer.close()
        return True

    return probe


def _pings(address: str, port: int) -> Probe:
    async def probe(_: Process) -> bool:
        try:
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(b"PING\r\n")
            answer = await asyncio.wait_for(reader.readline(), 5.0)
        except (OSError, TimeoutError):
            return False
        writer.close()
        # While it loads its append-only file Redis answers -LOADING.
        return answer.startswith(b"+PONG")

    return probe
