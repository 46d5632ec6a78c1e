"""Every kind of machine on a real libvirt and QEMU: defined with validation, booted, looked at."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from lxml import etree

from innkeeper.states import PowerState
from lab.guest.bootsector import MARKER
from tasks.guest_abi import GuestDefaults
from tests.virt.conftest import Guest, Host, MakeGuest
from tests.waiting import wait_until
from virt.domain_xml import (
    CdromSpec,
    DiskSpec,
    NicSpec,
    TopologySpec,
    UefiSpec,
    for_destination,
    host_demand,
    parse_metadata,
)
from virt.hypervisor import MigrationRequest

pytestmark = pytest.mark.lab

UEFI_LIMIT_S = 120.0
# What libvirt adds to any definition by itself.
LIBVIRTS_OWN = {"currentMemory", "alias", "address", "emulator", "controller", "model", "target"}
LIBVIRTS_OWN |= {"input", "audio", "console", "source", "master", "cpu"}
TARGETS = {"virtio": "vda", "scsi": "sda", "sata": "sda", "ide": "hda"}


def on_bus(guest: Guest, bus: str, **changes: Any) -> Guest:
    """Return the guest with its disk on another bus."""
    disk = replace(guest.spec.disks[0], bus=bus, target=TARGETS[bus], boot_order=1)  # type: ignore[arg-type]
    guest.spec = replace(guest.spec, **{"disks": (disk,), **changes})
    return guest


def uefi(guest: Guest) -> UefiSpec:
    defaults = GuestDefaults()
    return UefiSpec(
        code_path=str(defaults.uefi_code_path),
        template_path=str(defaults.uefi_template_path),
        nvram_path=str(guest.directory / f"{guest.id}.fd"),
    )


def started(host: Host, guest: Guest) -> Guest:
    host.hypervisor.define(guest.xml)
    host.hypervisor.ensure_started(guest.id)
    return guest


def definition(host: Host, guest: Guest) -> Any:
    return etree.fromstring(host.hypervisor.dump_xml(guest.id, inactive=True).encode())


def qemu_command_line(guest: Guest) -> str:
    """Return the command line of the guest's QEMU."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if f"-uuid {guest.id}" in line:
                return line
    pytest.fail("the guest has no QEMU")


@pytest.mark.parametrize(
    ("bus", "machine"),
    [
        ("virtio", "pc-i440fx-7.2"),
        ("scsi", "pc-i440fx-7.2"),
        ("sata", "pc-i440fx-7.2"),
        ("ide", "pc-i440fx-7.2"),
        ("virtio", "pc-q35-7.2"),
        ("scsi", "pc-q35-7.2"),
        ("sata", "pc-q35-7.2"),
    ],
)
def test_a_guest_boots_from_every_bus(
    src: Host, make_guest: MakeGuest, bus: str, machine: str
) -> None:
    guest = started(src, on_bus(make_guest(machine=machine), bus))
    wait_until(lambda: MARKER in guest.tail(), what=f"the guest boots from {bus} on {machine}")
    root = definition(src, guest)
    assert root.find("os/type").get("machine") == machine
    assert root.find("devices/disk/target").get("bus") == bus
    if bus == "scsi":
        models = [each.get("model") for each in root.iterfind("devices/controller[@type='scsi']")]
        assert models == ["virtio-scsi"]
    src.hypervisor.ensure_destroyed(guest.id)


def test_more_scsi_disks_than_one_controller_takes(src: Host, make_guest: MakeGuest) -> None:
    guest = on_bus(make_guest(), "scsi")
    root = guest.spec.disks[0]
    names = [f"sd{letter}" for letter in "bcdefghijklmnopq"]
    extra = []
    for name in names:
        path = guest.directory / f"{guest.id}-{name}.raw"
        path.write_bytes(bytes(1 << 20))
        extra.append(DiskSpec(target=name, path=str(path), format="raw", bus="scsi"))
    guest.spec = replace(guest.spec, disks=(root, *extra))
    started(src, guest)
    models = Counter(
        each.get("model")
        for each in definition(src, guest).iterfind("devices/controller[@type='scsi']")
    )
    assert models == {"virtio-scsi": 3}
    wait_until(lambda: MARKER in guest.tail(), what="the guest boots from the first of 17 disks")


@pytest.mark.parametrize("machine", ["pc-i440fx-7.2", "pc-q35-7.2"])
def test_libvirt_keeps_what_was_said_and_adds_nothing_strange(
    src: Host, make_guest: MakeGuest, machine: str
) -> None:
    guest = make_guest(machine=machine)
    iso = guest.directory / f"{guest.id}.iso"
    iso.write_bytes(bytes(1 << 20))
    on_bus(
        guest,
        "scsi",
        vcpus=4,
        cpu="Nehalem",
        topology=TopologySpec(sockets=1, cores=2, threads=2),
        uefi=uefi(guest),
        cdroms=(CdromSpec(target="sdb", path=str(iso), bus="sata", boot_order=2),),
        nics=(
            NicSpec(
                mac="52:54:00:00:00:07",
                bridge="nobridge0",
                filter_name="clean-traffic",
                addresses=("10.9.8.7", "10.9.8.6"),
                model="e1000",
                mtu=1400,
                boot_order=3,
            ),
        ),
        video="virtio",
        watchdog="pause",
        metadata=(("owner's <note>", "a & b\nc"), ("empty", "")),
    )
    src.hypervisor.define(guest.xml)
    kept = definition(src, guest)
    said = etree.fromstring(guest.xml)
    assert {e.tag for e in kept.iter(etree.Element)} - {e.tag for e in said.iter()} <= LIBVIRTS_OWN
    assert not [e for e in kept.iter(etree.Element) if "qemu" in str(e.tag)]

    def facts(root: Any, path: str) -> list[tuple[dict[str, str], str]]:
        return [(dict(e.attrib), (e.text or "").strip()) for e in root.iterfind(path)]

    for path in (
        "vcpu",
        "os/type",
        "os/loader",
        "os/nvram",
        "cpu/topology",
        "clock/timer",
        "devices/disk/boot",
        "devices/disk/source",
        "devices/disk/backingStore/source",
        "devices/interface/mac",
        "devices/interface/source",
        "devices/interface/model",
        "devices/interface/mtu",
        "devices/interface/boot",
        "devices/interface/filterref/parameter",
        "devices/memballoon/stats",
        "devices/rng/rate",
        "devices/rng/backend",
        "devices/serial/source",
        "devices/graphics/listen",
    ):
        assert facts(kept, path) == facts(said, path), path
        assert facts(said, path), path
    assert kept.find("devices/watchdog").get("action") == "pause"
    assert kept.find("devices/video/model").get("type") == "virtio"
    entries = {e.get("key"): e.text or "" for e in kept.iterfind("metadata/*/*")}
    assert entries == dict(guest.spec.metadata)
    assert parse_metadata(etree.tostring(kept, encoding="unicode")) == (
        guest.spec.epoch,
        guest.spec.operation_id,
    )


@pytest.mark.parametrize("changes", [{"video": "virtio"}, {"video": "none"}, {"has_vnc": False}])
def test_screens(src: Host, make_guest: MakeGuest, changes: dict[str, Any]) -> None:
    guest = started(src, make_guest(**changes))
    live = etree.fromstring(src.hypervisor.dump_xml(guest.id).encode())
    served = [each.get("listen") for each in live.iterfind("devices/graphics")]
    assert served == (["127.0.0.1"] if changes == {"video": "virtio"} else [])
    wait_until(lambda: MARKER in guest.tail(), what="the guest boots")


def test_cpus_are_arranged_as_was_said(src: Host, make_guest: MakeGuest) -> None:
    topology = TopologySpec(sockets=2, cores=2, threads=1)
    guest = started(src, make_guest(vcpus=4, topology=topology, machine="pc-q35-7.2"))
    assert "-smp 4,sockets=2,dies=1,cores=2,threads=1" in qemu_command_line(guest)


@pytest.mark.parametrize("machine", ["pc-i440fx-7.2", "pc-q35-7.2"])
@pytest.mark.parametrize("action", ["reset", "poweroff", "pause"])
def test_the_watchdog_is_there_with_its_action(
    src: Host, make_guest: MakeGuest, machine: str, action: str
) -> None:
    guest = started(src, make_guest(machine=machine, watchdog=action))
    assert '"driver":"i6300esb"' in qemu_command_line(guest)
    live = etree.fromstring(src.hypervisor.dump_xml(guest.id).encode())
    assert live.find("devices/watchdog").get("action") == action


def test_uefi_boots_keeps_its_variables_and_leaves_them_to_the_guests_files(
    src: Host, make_guest: MakeGuest
) -> None:
    guest = make_guest(machine="pc-q35-7.2", memory_mib=128)
    guest.spec = replace(guest.spec, uefi=uefi(guest))
    demand = host_demand(guest.xml)
    assert demand.machine == "pc-q35-7.2"
    assert len(demand.firmware_paths) == 2
    started(src, guest)
    variables = Path(uefi(guest).nvram_path)
    wait_until(lambda: "BdsDxe" in guest.tail(), timeout_s=UEFI_LIMIT_S, what="the firmware speaks")
    assert variables.stat().st_size == Path(uefi(guest).template_path).stat().st_size
    src.hypervisor.ensure_destroyed(guest.id)
    src.hypervisor.ensure_undefined(guest.id)
    assert src.hypervisor.find_domain(guest.id) is None
    assert variables.exists()


def test_a_uefi_guest_migrates_with_its_variables(
    src: Host, dst: Host, make_guest: MakeGuest
) -> None:
    guest = make_guest(machine="pc-q35-7.2", memory_mib=128, epoch=4)
    guest.spec = replace(guest.spec, uefi=uefi(guest))
    started(src, guest)
    wait_until(lambda: "BdsDxe" in guest.tail(), timeout_s=UEFI_LIMIT_S, what="the firmware speaks")
    moved = for_destination(
        src.hypervisor.dump_xml(guest.id, migratable=True),
        epoch=5,
        operation_id=uuid4(),
        console_path=f"{guest.console}.dst",
    )
    assert host_demand(moved) == host_demand(guest.xml)
    variables = Path(uefi(guest).nvram_path)
    before = variables.read_bytes()
    job = src.hypervisor.migrate(
        guest.id,
        MigrationRequest(
            dst_uri=f"qemu+tcp://{dst.address}/system",
            migrate_uri=f"tcp://{dst.address}",
            dst_xml=moved,
            persistent_xml=moved,
            is_unsafe=True,
            is_paused_arrival=True,
            max_downtime_ms=300,
        ),
    )
    assert job.wait(UEFI_LIMIT_S)
    assert job.error is None
    dst.hypervisor.ensure_resumed(guest.id)
    assert dst.hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING
    assert variables.read_bytes() == before
    dst.hypervisor.ensure_destroyed(guest.id)
    dst.hypervisor.ensure_undefined(guest.id)
    assert variables.exists()
