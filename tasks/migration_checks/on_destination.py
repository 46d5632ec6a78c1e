"""What the destination can see by itself: libvirt, QEMU and what the guest's devices need there."""

from collections.abc import Iterator
from pathlib import Path

from innkeeper.errors import InnkeeperError
from tasks.failed_check import Failure, failure
from tasks.migration_checks import storage
from tasks.migration_checks.check import Check
from tasks.migration_checks.clock import check_clock
from tasks.migration_checks.move import Move
from tasks.migration_checks.parallel import check_parallel
from tasks.migration_checks.versions import check_versions
from virt.links import find_bridge_problem


def check_names(move: Move) -> Iterator[Failure]:
    """No domain may stand where the guest's is to be made."""
    host, instance = move.services.name, move.instance
    view = move.hypervisor.find_domain(instance.id)
    if view is not None and (view.epoch is None or view.epoch != move.epoch):
        whose = "of nobody's" if view.epoch is None else f"from epoch {view.epoch}"
        yield failure(
            "name_taken",
            f"{host} has a domain with this guest's UUID already, {whose}.",
            "Look at that domain; Innkeeper does not remove what it cannot prove to be stale.",
        )
        return
    other = move.hypervisor.find_uuid_of_name(instance.name)
    if other is not None and other != instance.id:
        yield failure(
            "name_taken",
            f"{host} has another domain of the name {instance.name}, with the UUID {other}.",
            "Rename or remove that domain, or choose another destination.",
        )


def check_cpu(move: Move) -> Iterator[Failure]:
    """The host's CPU must have what the running guest's has."""
    host = move.services.name
    try:
        comparison = move.hypervisor.compare_cpu(move.needs.cpu)
    except InnkeeperError as error:
        if error.retryable:
            raise
        yield failure("cpu", f"The CPU could not be compared: {error.message}", error.hint)
        return
    if not comparison.is_compatible:
        yield failure(
            "cpu",
            f"The CPU of {host} lacks what the guest uses: {comparison.detail or 'a feature'}.",
            "Choose a host of the same or a newer CPU generation.",
        )


def check_machine(move: Move) -> Iterator[Failure]:
    """This host must have the guest's machine type and firmware: neither can change."""
    host = move.services.name
    if move.needs.machine not in move.hypervisor.get_facts().machines:
        yield failure(
            "machine",
            f"{host} has no machine type {move.needs.machine}.",
            "Choose a host with the same QEMU or a newer one that still offers it.",
        )
    for path in move.needs.firmware_paths:
        if not Path(path).is_file():
            yield failure(
                "firmware",
                f"{host} has no UEFI firmware file {path}.",
                "Install the same firmware there (on Debian the package ovmf), under the same "
                "path.",
            )


def check_network(move: Move) -> Iterator[Failure]:
    """The guest's bridges must be there and up, and its filters known."""
    host = move.services.name
    for bridge in move.needs.bridges:
        problem = find_bridge_problem(bridge)
        if problem is not None:
            yield failure(
                "network",
                f"{host} cannot give the guest its network: {problem}.",
                "Make the bridge on that host, or choose another destination.",
            )
    for name in move.needs.filters:
        if not move.hypervisor.has_filter(name):
            yield failure(
                "network",
                f"{host} has no network filter {name}, which the guest's card is bound to.",
                f"Define it there (virsh nwfilter-define), as on {move.src}.",
            )


def check_secrets(move: Move) -> Iterator[Failure]:
    """Libvirt must know the secrets that the guest's disks name."""
    for need in move.needs.secrets:
        if not move.hypervisor.has_secret(need):
            yield failure(
                "secret",
                f"Libvirt on {move.services.name} has no {need.kind or ''} secret "
                f"{need.uuid or need.usage} of the guest's disk.",
                "Define it there with its value (virsh secret-define, secret-set-value).",
            )


def check_memory(move: Move) -> Iterator[Failure]:
    """The host must be able to give the guest its memory now, unless memory is over-committed."""
    row = move.hosts.get(move.dst)
    if row is not None and row.memory_overcommit > 1:
        return
    available_mib = move.hypervisor.probe_available_mib()
    if available_mib < move.instance.memory_mib:
        yield failure(
            "memory",
            f"{move.services.name} has {available_mib} MiB of memory available now, the guest "
            f"needs {move.instance.memory_mib} MiB.",
            "See what takes the memory there, or choose another destination.",
        )


CHECKS_ON_DESTINATION = (
    Check("hypervisor", check_versions),
    Check("parallel", check_parallel),
    Check("clock", check_clock),
    Check("name_taken", check_names),
    Check("cpu", check_cpu),
    Check("machine", check_machine),
    Check("memory", check_memory),
    Check("network", check_network),
    Check("secret", check_secrets),
    Check("pool", storage.check_pool),
    Check("disk", storage.check_room, is_of_copy=True),
    Check("base", storage.check_bases, is_of_copy=True),
    Check("config_drive", storage.check_drive, is_of_copy=True),
)
