"""From a spec to its domain: everything that is accepted renders; what was frozen stays."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from innkeeper.errors import HostUnsuitable, InvalidRequest
from innkeeper.types import InstanceSpec
from tasks.disk_plan import plan_disks
from tasks.guest_abi import GuestAbi, GuestDefaults, freeze, nic_mac, require_offered
from tasks.guest_domain import describe_machine, refuse_impossible
from tasks.migration_checks import check_machine
from virt.domain_xml import CdromSpec, DiskSpec, DomainSpec, render_domain
from virt.migration_needs import read_needs

ID = UUID("6d0c6c2e-5b6e-4d1a-9c38-0c8f6a4f8a11")
DEBIAN_12 = GuestDefaults()
ALIASES = {"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"}
# Another host, another release: newer QEMU, other defaults, other paths.
LATER = GuestDefaults(
    machine="q35", cpu_model="EPYC", uefi_code_path=Path("/fw/c"), uefi_template_path=Path("/fw/v")
)
LATER_ALIASES = {"pc": "pc-i440fx-9.9", "q35": "pc-q35-9.9"}


def spec_of(**fields: Any) -> InstanceSpec:
    return InstanceSpec(**{"name": "web-1", "image": "/i.qcow2", **fields})


def machine_of(
    spec: InstanceSpec, abi: GuestAbi | None = None, cdroms: tuple[CdromSpec, ...] = ()
) -> DomainSpec:
    return describe_machine(
        spec,
        abi or freeze(ID, spec, DEBIAN_12, ALIASES),
        instance_id=ID,
        directory=Path("/pool/instances") / str(ID),
        disks=tuple(
            DiskSpec(target=disk.target, path=f"/d/{disk.file}", format=disk.format, bus=disk.bus)
            for disk in plan_disks(spec)
        ),
        cdroms=cdroms,
    )


def test_what_the_spec_says_stands_in_the_domain() -> None:
    spec = spec_of(
        vcpus=4,
        hardware={
            "machine": "pc-q35-6.2",
            "firmware": "uefi",
            "cpu_model": "Nehalem",
            "topology": {"sockets": 1, "cores": 2, "threads": 2},
            "root_bus": "scsi",
            "boot_order": ["network", "cdrom", "disk"],
            "video": "virtio",
            "has_vnc": False,
            "has_rng": False,
            "has_balloon": False,
            "has_agent_channel": False,
            "watchdog": "pause",
        },
        network_cards=[
            {"bridge": "br0", "mac": "52:54:00:00:00:01", "model": "e1000", "mtu": 1400},
            {"bridge": "br1", "addresses": ["10.0.0.5/24", "10.0.0.6/24"]},
        ],
        metadata={"b": "2", "a": "<1>"},
    )
    domain = machine_of(spec, cdroms=(CdromSpec(target="sdb", path="/d/cd.iso", bus="sata"),))
    assert (domain.machine, domain.cpu, domain.vcpus) == ("pc-q35-6.2", "Nehalem", 4)
    assert domain.topology is not None
    assert (domain.topology.sockets, domain.topology.cores, domain.topology.threads) == (1, 2, 2)
    assert domain.uefi is not None
    assert domain.uefi.code_path == "/usr/share/OVMF/OVMF_CODE_4M.fd"
    assert domain.uefi.nvram_path == f"/pool/instances/{ID}/uefi-variables.fd"
    assert [(nic.mac, nic.bridge, nic.model, nic.mtu) for nic in domain.nics] == [
        ("52:54:00:00:00:01", "br0", "e1000", 1400),
        (nic_mac(ID, 1, spec.nics[1]), "br1", "virtio", None),
    ]
    assert domain.nics[1].addresses == ("10.0.0.5", "10.0.0.6")
    assert {nic.filter_name for nic in domain.nics} == {"clean-traffic"}
    assert [nic.boot_order for nic in domain.nics] == [1, 2]
    assert [cdrom.boot_order for cdrom in domain.cdroms] == [3]
    assert [(disk.bus, disk.boot_order) for disk in domain.disks] == [("scsi", 4)]
    assert (domain.video, domain.has_vnc, domain.watchdog) == ("virtio", False, "pause")
    assert not any((domain.has_rng, domain.has_balloon, domain.has_agent_channel))
    assert domain.metadata == (("a", "<1>"), ("b", "2"))


def test_only_the_root_disk_is_booted_from_by_default() -> None:
    spec = spec_of(bridge="br0", disks=[{"size_mib": 1}])
    domain = machine_of(spec, cdroms=(CdromSpec(target="sda", path="/d/cd.iso", bus="sata"),))
    assert [disk.boot_order for disk in domain.disks] == [1, None]
    assert [device.boot_order for device in (*domain.cdroms, *domain.nics)] == [None, None]


def test_what_is_not_said_is_the_hosts_own_at_first_and_frozen_then() -> None:
    spec = spec_of(hardware={"firmware": "uefi"}, network_cards=[{"bridge": "b0"}])
    abi = freeze(ID, spec, DEBIAN_12, ALIASES)
    assert (abi.machine, abi.cpu) == ("pc-i440fx-7.2", None)
    first = machine_of(spec, abi)
    kept = GuestAbi.from_row(abi.model_dump(mode="json"), ID, spec)
    assert machine_of(spec, kept) == first
    # A host with other defaults would have given it another machine, had it been the first.
    fresh = freeze(ID, spec, LATER, LATER_ALIASES)
    assert (fresh.machine, fresh.cpu, fresh.uefi_code_path) == ("pc-q35-9.9", "EPYC", "/fw/c")
    assert machine_of(spec, fresh) != first


def test_a_guest_of_release_0_1_keeps_its_machine_and_its_mac() -> None:
    spec = spec_of(bridge="br0")
    abi = GuestAbi.from_row({"machine": "pc-i440fx-7.2", "cpu": None}, ID, spec)
    assert abi.revision == 0
    assert machine_of(spec, abi).machine == "pc-i440fx-7.2"
    assert not machine_of(spec, abi).has_panic_device
    assert machine_of(spec).has_panic_device
    assert [nic.mac for nic in machine_of(spec, abi).nics] == ["52:54:00:cb:bc:a6"]


def test_macs_are_local_unicast_and_of_forty_bits() -> None:
    spec = spec_of(bridge="br0")
    macs = {nic_mac(UUID(int=number), 0, spec.nics[0]) for number in range(20_000)}
    assert len(macs) == 20_000
    assert all(mac.startswith("52:") and len(mac) == 17 for mac in macs)


def test_cards_have_macs_of_their_own() -> None:
    spec = spec_of(network_cards=[{"bridge": "b0"}] * 8)
    macs = [card.mac for card in freeze(ID, spec, DEBIAN_12, ALIASES).nics]
    assert len(set(macs)) == len(macs)
    assert macs == [card.mac for card in freeze(ID, spec, LATER, LATER_ALIASES).nics]


@dataclass
class OfferingHost:
    """Stands in for a connected hypervisor: what it offers is data."""

    name: str = "hv-a"

    def get_facts(self) -> Any:
        return SimpleNamespace(machines={"pc-i440fx-7.2": 255, "pc-q35-7.2": 288, "isapc": 1})

    def get_machine_facts(self, machine: str) -> Any:
        assert machine.startswith("pc-")
        return SimpleNamespace(cpu_models=("Nehalem", "qemu64"), video_models=("vga",))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hardware": {"machine": "pc-q35-9.9"}}, "pc-q35-9.9; it offers pc-i440fx-7.2, pc-q35"),
        ({"hardware": {"cpu_model": "Z80"}}, "no CPU model Z80; it offers Nehalem, qemu64"),
        ({"hardware": {"video": "virtio"}}, "no graphics card virtio; it offers vga"),
        ({"vcpus": 256}, "at most 255 vCPUs for a pc-i440fx-7.2, not 256"),
    ],
)
def test_a_host_that_cannot_says_what_it_can(fields: dict[str, Any], said: str) -> None:
    spec = spec_of(**fields)
    with pytest.raises(HostUnsuitable, match=said):
        require_offered(OfferingHost(), spec, freeze(ID, spec, DEBIAN_12, ALIASES))  # type: ignore[arg-type]


def test_a_host_without_the_firmware_is_unsuitable() -> None:
    spec = spec_of(hardware={"firmware": "uefi", "machine": "pc-q35-7.2"})
    with pytest.raises(HostUnsuitable, match="no UEFI firmware file /fw/c"):
        require_offered(
            OfferingHost(), spec, freeze(ID, spec, replace(LATER, cpu_model=None), ALIASES)
        )  # type: ignore[arg-type]
    plain = spec_of(hardware={"cpu_model": "Nehalem"})
    require_offered(OfferingHost(), plain, freeze(ID, plain, DEBIAN_12, ALIASES))  # type: ignore[arg-type]


def test_a_destination_needs_the_machine_type_and_the_firmware() -> None:
    spec = spec_of(hardware={"firmware": "uefi", "machine": "pc-q35-7.2"})
    services = SimpleNamespace(name="hv-b")

    def failed(defaults: GuestDefaults, machine: str = "pc-q35-7.2") -> list[str]:
        abi = freeze(ID, spec, defaults, ALIASES).model_copy(update={"machine": machine})
        needs = read_needs(render_domain(machine_of(spec, abi)))
        here = SimpleNamespace(services=services, hypervisor=OfferingHost(), needs=needs)
        failures = check_machine(here)  # type: ignore[arg-type]
        return [failure["code"] for failure in failures]

    assert failed(DEBIAN_12) == []
    assert failed(LATER) == ["check_firmware", "check_firmware"]
    assert failed(DEBIAN_12, machine="pc-q35-9.1") == ["check_machine"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hardware": {"machine": "pc-q35-7.2", "root_bus": "ide"}}, "has no IDE; use sata"),
        ({"hardware": {"machine": "virt-7.2"}}, "not a versioned pc-i440fx or pc-q35"),
        (
            {"network_cards": [{"bridge": "b0", "addresses": ["2001:db8::5/64"]}]},
            r"network_cards.0.addresses: IPv6 is not supported yet",
        ),
        ({"disks": [{"size_mib": 1, "bus": "ide"}] * 4}, "IDE bus"),
    ],
)
def test_what_no_machine_could_have_is_refused_beforehand(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        refuse_impossible(spec_of(**fields))


text = st.text(max_size=30)
buses = st.sampled_from(["virtio", "scsi", "sata", "ide"])
wishes = st.fixed_dictionaries(
    {"name": st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True), "image": st.just("/i.qcow2")},
    optional={
        "vcpus": st.integers(1, 512),
        "memory_mib": st.integers(16, 2**20),
        "disks": st.lists(
            st.fixed_dictionaries(
                {"size_mib": st.integers(1, 99)},
                optional={"bus": buses, "serial": st.from_regex(r"[A-Za-z0-9_.-]{1,20}")},
            ),
            max_size=16,
        ),
        "network_cards": st.lists(
            st.fixed_dictionaries(
                {"bridge": st.from_regex(r"[a-zA-Z0-9_.-]{1,15}", fullmatch=True)},
                optional={
                    "addresses": st.lists(st.ip_addresses().map(str), max_size=2),
                    "mtu": st.integers(576, 65535),
                    "model": st.sampled_from(["virtio", "e1000", "e1000e", "rtl8139"]),
                },
            ),
            max_size=8,
        ),
        "metadata": st.dictionaries(text, text, max_size=4),
        "hardware": st.fixed_dictionaries(
            {},
            optional={
                "machine": st.sampled_from(["pc-i440fx-7.2", "pc-q35-7.2", "virt-7.2", "x-1.2.3"]),
                "firmware": st.sampled_from(["bios", "uefi"]),
                "cpu_model": st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
                "root_bus": buses,
                "boot_order": st.lists(
                    st.sampled_from(["disk", "cdrom", "network"]), min_size=1, unique=True
                ),
                "video": st.sampled_from(["vga", "virtio", "none"]),
                "watchdog": st.sampled_from(["reset", "poweroff", "pause", "none"]),
            },
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(wish=wishes)
def test_whatever_is_accepted_renders(wish: dict[str, Any]) -> None:
    try:
        spec = InstanceSpec.model_validate(wish)
        refuse_impossible(spec)
    except (ValueError, InvalidRequest):
        return
    xml = render_domain(machine_of(spec))
    entries = {e.get("key"): e.text or "" for e in etree.fromstring(xml).iterfind("metadata/*/*")}
    assert entries == spec.metadata
    assert freeze(uuid4(), spec, DEBIAN_12, ALIASES).machine in xml
