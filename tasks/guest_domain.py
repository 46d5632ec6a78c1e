"""From a guest's record to its domain; pure, so that any host renders the same."""

import hashlib
from typing import Literal

from innkeeper.types import InstanceSpec
from models.instance import Instance
from models.operation import Operation
from tasks.context import HostServices, get_pool
from virt.domain_xml import DiskSpec, DomainSpec, NicSpec

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
    image_path: str,
    image_format: Literal["qcow2", "raw"],
) -> DomainSpec:
    """Describe the domain of a new guest.

    Args:
        services: the host's parts; only its paths and domain type are used.
        instance: the guest's row.
        operation: the spawn; its id and epoch go into the metadata.
        image_path: the cached base of the root disk.
        image_format: ``qcow2`` or ``raw``.
    """
    spec = InstanceSpec.model_validate(instance.spec)
    root = DiskSpec(
        target="vda",
        path=str(get_pool(services, instance.pool).root_disk(instance.id)),
        format="qcow2",
        backing_path=image_path,
        backing_format=image_format,
        boot_order=1,
    )
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
        disks=(root,),
        nics=nics,
        console_log_path=str(services.console_path(instance.id)),
    )
