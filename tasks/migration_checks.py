"""The checks of a live migration; each returns a failure with its code and hint, or nothing."""

from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from innkeeper.errors import CapacityError, HostUnsuitable, InnkeeperError, RequestError
from innkeeper.states import InstanceState, PowerState, Storage
from innkeeper.types import MigrationPolicy
from models.host import Host
from models.remote_disks import RemoteDisk, find_prefetch, find_remote_disk
from tasks.config_drive import rebuild_drive
from tasks.context import StepContext
from tasks.migration_tls import LIBVIRT_TCP_PORT, LIBVIRT_TLS_PORT
from virt import disks
from virt.domain_xml import host_demand
from virt.reach import probe_tcp

MIGRATION_PORT = 49152
REACH_TIMEOUT_S = 3.0
GIB = 1024**3

Failure = dict[str, Any]


def failure(check: str, message: str, hint: str) -> Failure:
    """Return one failed check in its wire form."""
    return {"check": check, "code": f"check_{check}", "message": message, "hint": hint}


def get_dst_address(context: StepContext) -> str:
    """Get the address under which the destination takes migrations, from its row."""
    dst = context.operation.dst_host

    def read(session: Session) -> str | None:
        return session.scalar(select(Host.migration_address).where(Host.name == dst))

    address = context.database.run(read)
    if address is None:
        raise HostUnsuitable(f"Host {dst} has registered no address for migrations.", {"host": dst})
    return address


def check_on_destination(context: StepContext) -> list[Failure]:
    """Run every check that the destination can make by itself."""
    hypervisor, instance = context.host.hypervisor, context.instance
    failures: list[Failure] = []
    view = hypervisor.find_domain(instance.id)
    if view is not None and view.epoch != context.operation.epoch:
        failures.append(
            failure(
                "name_taken",
                f"{context.host.name} has a domain of this guest already, from epoch {view.epoch}.",
                "Look at that domain; Innkeeper does not remove what it cannot prove to be stale.",
            )
        )
    if instance.domain_xml:
        try:
            comparison = hypervisor.compare_cpu(instance.domain_xml)
        except InnkeeperError as exc:
            failures.append(failure("cpu", f"The CPU could not be compared: {exc}.", exc.hint))
        else:
            if not comparison.is_compatible:
                failures.append(
                    failure(
                        "cpu",
                        f"The CPU of {context.host.name} lacks what the guest uses: "
                        f"{comparison.detail}.",
                        "Choose a host of the same or a newer CPU generation.",
                    )
                )
        failures.extend(check_machine(context, instance.domain_xml))
    free_bytes = disks.free_bytes(context.pool.path)
    policy = MigrationPolicy.model_validate(context.operation.params["policy"])
    if policy.storage != Storage.SHARED and free_bytes < GIB:
        failures.append(
            failure(
                "disk",
                f"Pool {context.pool.name} of {context.host.name} has {free_bytes // 2**20} MiB "
                "free.",
                "Free space in the pool, or choose another destination.",
            )
        )
    return failures


def check_machine(context: StepContext, domain_xml: str) -> list[Failure]:
    """See that this host has the guest's machine type and firmware: neither can change."""
    demand, failures = host_demand(domain_xml), []
    if demand.machine not in context.host.hypervisor.get_facts().machines:
        failures.append(
            failure(
                "machine",
                f"{context.host.name} has no machine type {demand.machine}.",
                "Choose a host with the same QEMU or a newer one that still offers it.",
            )
        )
    failures += [
        failure(
            "firmware",
            f"{context.host.name} has no UEFI firmware file {path}.",
            "Install the same firmware there (on Debian the package ovmf), under the same path.",
        )
        for path in demand.firmware_paths
        if not Path(path).is_file()
    ]
    return failures


def check_drive(context: StepContext) -> list[Failure]:
    """Check that the destination can build the guest's config drive, as the source built it."""
    try:
        rebuild_drive(context)
    except (CapacityError, RequestError) as exc:
        return [failure("config_drive", exc.message, exc.hint)]
    return []


def check_on_source(context: StepContext, *, is_tls: bool) -> list[Failure]:
    """Run every check that needs the source: its guest, its sight of the destination."""
    failures: list[Failure] = []
    view = context.host.hypervisor.find_domain(context.instance.id)
    expected = (
        PowerState.RUNNING
        if context.operation.state_before == InstanceState.ACTIVE
        else PowerState.PAUSED
    )
    if view is None or view.epoch != context.instance.domain_epoch:
        failures.append(
            failure(
                "domain",
                f"{context.host.name} has no domain of this guest of epoch "
                f"{context.instance.domain_epoch}.",
                "Compare innkeeper show with the host's own list of domains.",
            )
        )
    elif view.power_state != expected:
        failures.append(
            failure(
                "power_state",
                f"The guest is {view.power_state}, not {expected}.",
                "Wait for the power-state sync, then ask again.",
            )
        )
    failures.extend(_check_hydrated(context))
    address = get_dst_address(context)
    port = LIBVIRT_TLS_PORT if is_tls else LIBVIRT_TCP_PORT
    reason = probe_tcp(address, port, REACH_TIMEOUT_S)
    if reason is not None:
        failures.append(
            failure(
                "reachable",
                f"{context.host.name} does not reach libvirt on {context.operation.dst_host} "
                f"({address} port {port}): {reason}.",
                "Check the network, the firewall and libvirtd's listen address there.",
            )
        )
    return failures


def _check_hydrated(context: StepContext) -> list[Failure]:
    """A guest that still reads from its image's source stays until it does not."""
    instance_id, host = context.instance.id, context.host.name

    def read(session: Session) -> tuple[RemoteDisk | None, dict[str, Any] | None]:
        disk = find_remote_disk(session, instance_id)
        return disk, None if disk is None else find_prefetch(session, disk.wanted_on(host))

    disk, progress = context.database.run(read)
    if disk is None:
        return []
    done = "" if progress is None else f"; {float(progress.get('fraction', 0)):.0%} of it is here"
    return [
        failure(
            "not_hydrated",
            f"The guest still reads its disk from {disk.url}{done}.",
            f"Wait until its image is on the host, or hurry it: innkeeper hydrate {disk.name}.",
        )
    ]
