"""From a guest's record to its domain; pure, so that any host renders the same."""

import hashlib
from collections.abc import Sequence

from innkeeper.types import InstanceSpec
from models.disk import Disk
from models.instance import Instance
from models.operation import Operation
from tasks.context import HostServices, get_pool
from tasks.guest_disks import describe_disks
from virt.domain_xml import DomainSpec, NicSpec

MACHINE = "pc-i440fx-7.2"
ANTI_SPOOF_FILTER = "clean-traffic"


def mac_address(instance_id: object) -> str:
    """Return the guest's MAC address: QEMU's prefix and 24 bits of the guest's id."""
    digest = hashlib.sha256(f"{instance_id}:nic0".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def describe_domain(
    services: HostServices,
    instance: Instance,
    *,
    operation: Operation,
    disks: Sequence[Disk],
) -> DomainSpec:
    """Describe the domain of a new guest.

    Args:
        services: the host's parts; only its paths and domain type are used.
        instance: the guest's row.
        operation: the spawn; its id and epoch go into the metadata.
        disks: the rows of its disks, the root disk first.
    """
    spec = InstanceSpec.model_validate(instance.spec)
    nics: tuple[NicSpec, ...] = ()
    if spec.bridge is not None:
        nics = (
            NicSpec(
                mac=mac_address(instance.id), bridge=spec.bridge, filter_name=ANTI_SPOOF_FILTER
            ),
        )
    return DomainSpec(
        instance_id=instance.id,
        name=instance.name,
        epoch=operation.epoch,
        operation_id=operation.id,
        vcpus=instance.vcpus,
        memory_mib=instance.memory_mib,
        machine=MACHINE,
        domain_type=services.domain_type,
        cpu=None,
        disks=describe_disks(get_pool(services, instance.pool), instance, disks),
        nics=nics,
        console_log_path=str(services.console_path(instance.id)),
    )
