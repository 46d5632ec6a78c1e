"""The one process that owns a lab: init of its PID namespace, parent of everything in it.

When it dies, however it dies, the kernel kills every process of the lab, and with the last process
of a namespace go its mounts, bridges and cables. Nothing has to be cleaned up after a crash.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

from lab import capabilities_cache, environment, gluster, hosts, libvirt_config, services
from lab import description as descriptions
from lab.certificates import Authority
from lab.description import Description, HostFacts, Images
from lab.errors import LabError
from lab.hosts import Host
from lab.layout import REPOSITORY, Layout, host_names
from lab.namespaces import Namespaces
from lab.network import SERVICES, Cut, Network
from lab.processes import ProcessTable
from lab.progress import Progress
from lab.protocol import Request
from lab.roles import gluster_roles, libvirtd_role, migrate_command, service_roles, worker_roles
from lab.running import Running

_LOOKS = ("describe", "status")
_log = logging.getLogger(__name__)


class Supervisor:
    """Builds a lab, answers questions about it, and takes it down."""

    def __init__(self, layout: Layout, table: ProcessTable, progress: Progress) -> None:
        self._layout = layout
        self._table = table
        self._progress = progress
        self._running = Running(table, layout)
        self._network: Network | None = None
        self._lab: Description | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def up(
        self,
        count: int,
        images: Images,
        *,
        workers: bool,
        flower: bool,
        with_gluster: bool,
        extra_env: dict[str, str],
    ) -> None:
        """Bring up everything; returns when all roles are ready."""
        layout, table = self._layout, self._table
        previous = descriptions.load(layout.description)
        self._progress.say("network")
        network = await Network.create(table, previous.subnet if previous else None)
        self._network = network
        endpoints = services.choose_endpoints(
            network.subnet.services_address, previous.endpoints if previous else None
        )
        booted = await self._boot_hosts(network, count, Path(images.directory))
        storage = await self._boot_storage(network, booted) if with_gluster else None
        self._lab = lab = Description(
            directory=str(layout.root),
            subnet=network.subnet.number,
            endpoints=endpoints,
            images=images,
            hosts=tuple(self._facts(host) for host in booted),
            workers=workers,
            flower=flower,
            extra_env=extra_env,
            gluster=with_gluster,
            switch_pid=network.switch_pid,
        )
        descriptions.save(layout.description, lab)
        self._running.add(service_roles(table, layout, lab))
        self._running.add([libvirtd_role(table, lab, host) for host in booted])
        if workers:
            self._running.add(worker_roles(layout, lab, booted))
        starts = [self._start_services(lab), self._start_libvirtds(booted)]
        if storage is not None:
            self._running.add(gluster_roles(table, layout, storage, booted))
            starts.append(self._start_gluster(storage, booted))
        await _together(starts)
        if workers:
            await self._start_workers(lab)

    async def _boot_hosts(self, network: Network, count: int, images: Path) -> list[Host]:
        self._progress.say(f"{count} hosts")
        names = host_names(count)
        addresses = {SERVICES: network.subnet.services_address}
        addresses |= {name: network.subnet.host_address(i) for i, name in enumerate(names)}
        addresses[gluster.SERVER] = network.subnet.storage_address
        hosts.create_mount_points()
        authority = Authority.ensure(self._layout.tls, f"innkeeper-lab {self._layout.root}"[:64])
        for name in names:
            content = hosts.hosts_file(addresses)
            hosts.prepare_files(self._layout, name, addresses[name], content, authority)

        async def boot(index: int, name: str) -> Host:
            namespaces = await hosts.boot(self._table, self._layout, name, images)
            await network.plug(name, index, namespaces)
            return Host(name, index, addresses[name], namespaces)

        return list(await asyncio.gather(*(boot(i, name) for i, name in enumerate(names))))

    async def _boot_storage(self, network: Network, booted: list[Host]) -> Namespaces:
        content = (self._layout.host(booted[0].name) / "hosts").read_text()
        namespaces = await gluster.boot(self._table, self._layout, content)
        await network.plug_storage(gluster.SERVER, namespaces)
        return namespaces

    def _facts(self, host: Host) -> HostFacts:
        socket = self._layout.libvirt_socket(host.name)
        return HostFacts(
            name=host.name,
            address=host.address,
            uuid=str(libvirt_config.host_uuid(self._layout.root, host.name)),
            holder_pid=host.namespaces.holder.outer_pid,
            libvirt_uri=f"qemu+unix:///system?socket={socket}",
        )

    async def _start_services(self, lab: Description) -> None:
        async def postgres() -> None:
            await services.create_cluster(self._table, self._layout.postgres, lab.endpoints)
            await self._running.start("postgres")
            await services.create_database(self._table, lab.endpoints)
            self._progress.say("postgres is ready")

        async def redis() -> None:
            services.create_redis_directory(self._layout.redis)
            await self._running.start("redis")
            self._progress.say("redis is ready")

        await _together([postgres(), redis()])

    async def _start_gluster(self, storage: Namespaces, booted: list[Host]) -> None:
        await self._running.start("glusterd")
        await gluster.ensure_volume(self._table, self._layout, storage)
        await _together([self._mount(host) for host in booted])
        self._progress.say("glusterfs is mounted")

    async def _mount(self, host: Host) -> None:
        await self._running.start(f"gluster:{host.name}")

    async def _start_libvirtds(self, booted: list[Host]) -> None:
        async def start(host: Host) -> None:
            await self._running.start(f"libvirtd:{host.name}")
            self._progress.say(f"libvirtd on {host.name} is ready")

        caches = [self._layout.host(host.name) / "cache-libvirt" for host in booted]
        first, rest = booted[0], booted[1:]
        if not capabilities_cache.seed(caches[0]):
            self._progress.say("libvirt probes QEMU (once per machine)")
            await start(first)
            capabilities_cache.keep(caches[0])
        for cache in caches[1:]:
            capabilities_cache.seed(cache)
        await _together([start(host) for host in (rest if self._started(first) else booted)])
        capabilities_cache.keep(caches[0])

    def _started(self, host: Host) -> bool:
        return self._running.is_running(f"libvirtd:{host.name}")

    async def _start_workers(self, lab: Description) -> None:
        self._progress.say("database schema")
        env = environment.for_process(lab, self._layout, "migrate")
        await self._table.run(*migrate_command(), env=env, cwd=REPOSITORY, timeout_s=180)

        async def start(role: str) -> None:
            await self._running.start(role)
            self._progress.say(f"{role} is ready")

        await _together([start(role) for role in self._running.names(layer=2)])

    async def answer(self, request: Request) -> Any:
        """Serve one request of the control socket."""
        verb, arguments = request.verb, request.arguments
        if verb not in _LOOKS:
            _log.info("%s: %s %s", request.caller, verb, _shown(arguments))
        if verb == "down":
            return await self.down(f"asked by {request.caller}")
        if self._lab is None or self._network is None:
            raise LabError("the lab is still coming up")
        match verb:
            case "describe":
                return self._lab.as_dict()
            case "status":
                cuts = [vars(cut) for cut in self._network.cuts]
                return {"roles": self._running.status(), "cuts": cuts}
            case "start":
                return await self._running.start(arguments["role"], arguments["env"])
            case "kill":
                return await self._running.kill(
                    arguments["role"], signal.Signals(arguments["signal"])
                )
            case "cut":
                return await self._network.cut(Cut(**arguments))
            case "heal":
                pair = arguments["pair"]
                return await self._network.heal(tuple(pair) if pair else None)
            case _:
                raise LabError(f"the lab's supervisor knows no verb {verb!r}")

    async def down(self, why: str) -> None:
        """Stop everything in order; a second caller waits for the first.

        Args:
            why: for the log.
        """
        if self._stopping is None:
            _log.info("going down: %s", why)
            self._stopping = asyncio.create_task(self._down())
        await asyncio.shield(self._stopping)

    async def stop(self) -> None:
        """Stop what has been started so far."""
        await self._running.stop_all()
        if self._network is not None:
            await self._network.unplug_services()

    async def _down(self) -> None:
        try:
            await self.stop()
        except Exception:
            # Half a lab whose owner has gone would stay for ever.
            _log.exception("could not stop everything in order; the kernel does the rest")
        self._layout.control_socket.unlink(missing_ok=True)
        asyncio.get_running_loop().call_later(0.05, _leave)


def _shown(arguments: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value)


def _leave() -> None:
    # As init of the namespace: the kernel now kills whatever is left.
    _log.info("down")
    logging.shutdown()
    os._exit(0)


async def _together(steps: Iterable[Awaitable[None]]) -> None:
    """Run steps at once; the first error ends the wait for the others."""
    await asyncio.gather(*steps)
