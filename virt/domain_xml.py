"""A guest's domain XML, rendered from its typed description. Pure.

Text and attributes go through lxml, which escapes them; nothing is pasted. What is read from
libvirt's XML, or changed in it, is in virt.domain_reading and offered here as well.
"""

from lxml import etree

from innkeeper.errors import InvalidRequest
from virt.domain_devices import add_devices
from virt.domain_reading import (
    METADATA_URI,
    CpuDemand,
    Element,
    absolute,
    cpu_demand,
    digest_xml,
    for_destination,
    guest_element,
    host_demand,
    is_agent_connected,
    metadata_of,
    parse_metadata,
    to_text,
)
from virt.domain_rules import problems_of
from virt.domain_spec import (
    CdromSpec,
    DiskSpec,
    DomainSpec,
    KernelSpec,
    NicSpec,
    RemoteSource,
    TopologySpec,
    UefiSpec,
)

__all__ = [
    "METADATA_URI",
    "CdromSpec",
    "CpuDemand",
    "DiskSpec",
    "DomainSpec",
    "KernelSpec",
    "NicSpec",
    "RemoteSource",
    "TopologySpec",
    "UefiSpec",
    "cpu_demand",
    "digest_xml",
    "for_destination",
    "host_demand",
    "is_agent_connected",
    "metadata_of",
    "parse_metadata",
    "render_domain",
]


def render_domain(spec: DomainSpec) -> str:
    """Return the domain XML of a guest; the same spec gives the same bytes.

    Raises:
        InvalidRequest: the description contradicts itself or what machines can have, a value
            cannot stand in XML, or a path is not absolute.
    """
    problems = problems_of(spec)
    if problems:
        raise _refusal(spec, problems)
    try:
        return _render(spec)
    except ValueError as error:
        raise _refusal(spec, [("domain", str(error))]) from error


def _refusal(spec: DomainSpec, problems: list[tuple[str, str]]) -> InvalidRequest:
    said = "; ".join(f"{path}: {message}" for path, message in problems)
    return InvalidRequest(
        f"The guest {spec.instance_id} cannot be described to libvirt ({said}).",
        {"problems": [{"path": path, "message": message} for path, message in problems]},
    )


def _render(spec: DomainSpec) -> str:
    root = etree.Element("domain", type=spec.domain_type)
    _text(root, "name", spec.name)
    _text(root, "uuid", str(spec.instance_id))
    metadata = etree.SubElement(root, "metadata")
    metadata.append(guest_element(spec.epoch, spec.operation_id, spec.metadata))
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus), placement="static")
    _boot(root, spec)
    features = etree.SubElement(root, "features")
    etree.SubElement(features, "acpi")
    etree.SubElement(features, "apic")
    _cpu(root, spec.cpu, spec.topology)
    clock = etree.SubElement(root, "clock", offset="utc")
    etree.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    etree.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    etree.SubElement(clock, "timer", name="hpet", present="no")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "destroy")
    add_devices(etree.SubElement(root, "devices"), spec)
    return to_text(root)


def _boot(root: Element, spec: DomainSpec) -> None:
    os_ = etree.SubElement(root, "os")
    _text(os_, "type", "hvm", arch=spec.arch, machine=spec.machine)
    if spec.uefi is not None:
        _text(os_, "loader", absolute(spec.uefi.code_path), readonly="yes", type="pflash")
        template = absolute(spec.uefi.template_path)
        _text(os_, "nvram", absolute(spec.uefi.nvram_path), template=template)
    if spec.kernel is not None:
        _text(os_, "kernel", absolute(spec.kernel.kernel_path))
        if spec.kernel.ramdisk_path is not None:
            _text(os_, "initrd", absolute(spec.kernel.ramdisk_path))
        if spec.kernel.command_line:
            _text(os_, "cmdline", spec.kernel.command_line)


def _cpu(root: Element, model: str | None, topology: TopologySpec | None) -> None:
    if model is None and topology is None:
        return
    cpu = etree.SubElement(root, "cpu")
    if model is not None:
        cpu.attrib.update({"mode": "custom", "match": "exact", "check": "partial"})
        _text(cpu, "model", model, fallback="forbid")
    if topology is not None:
        etree.SubElement(
            cpu,
            "topology",
            sockets=str(topology.sockets),
            dies="1",
            cores=str(topology.cores),
            threads=str(topology.threads),
        )


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = etree.SubElement(parent, tag, attributes)
    element.text = text
    return element
