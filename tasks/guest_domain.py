"""From a guest's record to its domain; pure, so that any host renders the same."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_interface
from itertools import count
from pathlib import Path
from uuid import UUID

from innkeeper.errors import InvalidRequest
from innkeeper.types import InstanceSpec
from models.disk import Disk
from models.instance import Instance
from models.operation import Operation
from tasks.context import HostServices, get_pool
from tasks.disk_plan import plan_disks
from tasks.guest_abi import GuestAbi, GuestDefaults, freeze
from tasks.guest_disks import describe_disks
from virt.domain_xml import (
    CdromSpec,
    DiskSpec,
    DomainSpec,
    KernelSpec,
    NicSpec,
    TopologySpec,
    UefiSpec,
    render_domain,
)

ANTI_SPOOF_FILTER = "clean-traffic"
PANIC_DEVICE_SINCE = 1
NVRAM_FILE = "uefi-variables.fd"
# Of a family that has every bus: a host whose default differs is asked when the guest is there.
ANY_MACHINE = "pc-i440fx-0.0"
NO_ID = UUID(int=0)


def describe_domain(
    services: HostServices,
    instance: Instance,
    *,
    operation: Operation,
    abi: GuestAbi,
    disks: Sequence[Disk],
    cdroms: Iterable[CdromSpec] = (),
    kernel: KernelSpec | None = None,
) -> DomainSpec:
    """Describe the domain of a guest, for its first start or for any later one.

    Args:
        services: the host's parts; only its paths and domain type are used.
        instance: the guest's row.
        operation: its id and epoch go into the metadata.
        abi: what was frozen when the guest first booted, or is about to be.
        disks: the rows of its disks, the root disk first.
        cdroms: its CD-ROMs.
        kernel: the kernel that the host loads; None for the guest's own boot loader.
    """
    spec = InstanceSpec.model_validate(instance.spec)
    pool = get_pool(services, instance.pool)
    machine = describe_machine(
        spec,
        abi,
        instance_id=instance.id,
        directory=pool.instance_dir(instance.id),
        disks=describe_disks(services, instance, disks),
        cdroms=tuple(cdroms),
    )
    return replace(
        machine,
        name=instance.name,
        epoch=operation.epoch,
        operation_id=operation.id,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        domain_type=services.domain_type,
        kernel=kernel,
        console_log_path=str(services.console_path(instance.id)),
    )


def describe_machine(
    spec: InstanceSpec,
    abi: GuestAbi,
    *,
    instance_id: UUID,
    directory: Path,
    disks: tuple[DiskSpec, ...],
    cdroms: tuple[CdromSpec, ...] = (),
) -> DomainSpec:
    """Describe the machine of a spec; whose it is and on which host, is for the caller to say.

    Args:
        spec: the guest that is wanted.
        abi: what it has where the spec leaves it open.
        instance_id: the guest's.
        directory: of the guest's files.
        disks: the root disk first.
        cdroms: the CD-ROMs.
    """
    hardware = spec.hardware
    topology = hardware.topology
    uefi = None
    if abi.uefi_code_path is not None:
        uefi = UefiSpec(
            code_path=abi.uefi_code_path,
            template_path=abi.uefi_template_path or "",
            nvram_path=str(directory / NVRAM_FILE),
        )
    nics = _nics(spec, abi)
    disks, cdroms, nics = _ordered(hardware.boot_order, disks, cdroms, nics)
    return DomainSpec(
        instance_id=instance_id,
        name=spec.name,
        epoch=0,
        operation_id=NO_ID,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        machine=abi.machine,
        cpu=abi.cpu,
        topology=None
        if topology is None
        else TopologySpec(sockets=topology.sockets, cores=topology.cores, threads=topology.threads),
        uefi=uefi,
        disks=disks,
        cdroms=cdroms,
        nics=nics,
        has_agent_channel=hardware.has_agent_channel,
        has_rng=hardware.has_rng,
        video=hardware.video,
        has_vnc=hardware.has_vnc,
        has_balloon=hardware.has_balloon,
        has_panic_device=abi.revision >= PANIC_DEVICE_SINCE,
        watchdog=None if hardware.watchdog == "none" else hardware.watchdog,
        metadata=tuple(sorted(spec.metadata.items())),
    )


def refuse_impossible(spec: InstanceSpec) -> None:
    """Refuse a spec that no machine could have, before anything is done for it.

    Raises:
        InvalidRequest: with every problem.
    """
    abi = freeze(NO_ID, spec, GuestDefaults(machine=ANY_MACHINE), {})
    disks = tuple(
        DiskSpec(
            target=disk.target, path=f"/{disk.file}", format=disk.format, bus=disk.bus, serial=None
        )
        for disk in plan_disks(spec)
    )
    render_domain(describe_machine(spec, abi, instance_id=NO_ID, directory=Path("/"), disks=disks))


def _nics(spec: InstanceSpec, abi: GuestAbi) -> tuple[NicSpec, ...]:
    described = []
    for index, (card, frozen) in enumerate(zip(spec.nics, abi.nics, strict=True)):
        addresses = [ip_interface(address) for address in card.addresses]
        if any(address.version == 6 for address in addresses):
            # Libvirt's filter drops all IPv6: the guest would have an address that cannot work.
            raise _invalid(f"network_cards.{index}.addresses", "IPv6 is not supported yet")
        described.append(
            NicSpec(
                mac=frozen.mac,
                bridge=card.bridge,
                filter_name=ANTI_SPOOF_FILTER,
                addresses=tuple(str(address.ip) for address in addresses),
                model=frozen.model,
                mtu=frozen.mtu,
            )
        )
    return tuple(described)


def _ordered(
    wanted: Iterable[str],
    disks: tuple[DiskSpec, ...],
    cdroms: tuple[CdromSpec, ...],
    nics: tuple[NicSpec, ...],
) -> tuple[tuple[DiskSpec, ...], tuple[CdromSpec, ...], tuple[NicSpec, ...]]:
    """Number the devices as the firmware shall try them; of the disks only the root disk."""
    place = count(1)
    disks = tuple(replace(disk, boot_order=None) for disk in disks)
    for kind in wanted:
        match kind:
            case "disk":
                disks = (*(replace(disk, boot_order=next(place)) for disk in disks[:1]), *disks[1:])
            case "cdrom":
                cdroms = tuple(replace(cdrom, boot_order=next(place)) for cdrom in cdroms)
            case _:
                nics = tuple(replace(nic, boot_order=next(place)) for nic in nics)
    return disks, cdroms, nics


def _invalid(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(
        f"The guest cannot be made ({path}: {message}).",
        {"problems": [{"path": f"spec.{path}", "message": message}]},
    )
