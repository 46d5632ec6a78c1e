"""What libvirt's capability documents say, read into HostFacts. Pure."""

from typing import Any
from uuid import UUID

from lxml import etree

from virt.views import HostFacts, MachineFacts


def version_text(number: int) -> str:
    """Return libvirt's packed version as text: 9000000 → "9.0.0"."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def read_machine_facts(domain_capabilities_xml: str) -> MachineFacts:
    """Return what ``virConnectGetDomainCapabilities`` says of one machine type."""
    root = _parse(domain_capabilities_xml)
    custom = root.iterfind("cpu/mode[@name='custom'][@supported='yes']/model[@usable='yes']")
    video = root.iterfind("devices/video[@supported='yes']/enum[@name='modelType']/value")
    return MachineFacts(
        cpu_models=tuple(sorted({model.text or "" for model in custom})),
        video_models=tuple(value.text or "" for value in video),
    )


def _parse(xml: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    return etree.fromstring(xml.encode(), parser)


def read_facts(
    capabilities_xml: str,
    *,
    hostname: str,
    libvirt_version: int,
    qemu_version: int,
    hypervisor: str,
    node_info: list[Any],
    memory_kib: int,
    domain_type: str,
) -> HostFacts:
    """Return a host's facts.

    Args:
        capabilities_xml: of ``virConnectGetCapabilities``.
        hostname: of ``virConnectGetHostname``.
        libvirt_version: packed, of ``virConnectGetLibVersion``.
        qemu_version: packed, of ``virConnectGetVersion``.
        hypervisor: of ``virConnectGetType``.
        node_info: of ``virNodeGetInfo``: [model, memory MiB, CPUs, …].
        memory_kib: the host's memory. Not node_info's, which adds up the NUMA nodes, and they
            lag behind where memory is hot-plugged.
        domain_type: "qemu" or "kvm", to choose among machine types where they differ.
    """
    root = _parse(capabilities_xml)
    arch = root.findtext("host/cpu/arch") or str(node_info[0])
    guest = next(
        (
            candidate
            for candidate in root.iterfind("guest")
            if candidate.findtext("os_type") == "hvm"
            and (candidate.find(f"arch[@name='{arch}']")) is not None
        ),
        None,
    )
    emulator, types = "", []
    aliases: dict[str, str] = {}
    machines: dict[str, int] = {}
    if guest is not None:
        types = [str(kind.get("type")) for kind in guest.iterfind("arch/domain")]
        emulator = guest.findtext("arch/emulator") or ""
        scope = guest.find(f"arch/domain[@type='{domain_type}']")
        listed = list(guest.iterfind("arch/machine"))
        if scope is not None:
            listed += list(scope.iterfind("machine"))
        for machine in listed:
            name, canonical = machine.text or "", machine.get("canonical")
            if canonical:
                aliases[name] = canonical
            else:
                machines[name] = int(machine.get("maxCpus") or 1)
    return HostFacts(
        host_uuid=UUID(root.findtext("host/uuid") or ""),
        hostname=hostname,
        libvirt_version=version_text(libvirt_version),
        qemu_version=version_text(qemu_version),
        hypervisor=hypervisor,
        arch=arch,
        emulator=emulator,
        domain_types=tuple(dict.fromkeys(types)),
        machine_types=aliases,
        machines=machines,
        cpu_model=root.findtext("host/cpu/model"),
        vcpus=int(node_info[2]),
        memory_mib=memory_kib // 1024,
    )
