"""Domain XML: any spec is valid for libvirt's schema, and nothing in it is interpreted."""

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from innkeeper.errors import InvalidRequest
from tests.unit.virt.domain_trees import specs
from virt.domain_reading import for_destination, is_agent_connected
from virt.domain_xml import (
    DiskSpec,
    DomainSpec,
    NicSpec,
    cpu_demand,
    digest_xml,
    metadata_of,
    parse_metadata,
    render_domain,
)

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
ID = UUID("6d0c6c2e-5b6e-4d1a-9c38-0c8f6a4f8a11")
OPERATION = UUID("0b9f8c9e-9a51-4a5f-8a52-3d7f7b3f1c22")

SPEC = DomainSpec(
    instance_id=ID,
    name="web-1",
    epoch=7,
    operation_id=OPERATION,
    vcpus=2,
    memory_mib=512,
    machine="pc-i440fx-7.2",
    disks=(
        DiskSpec(target="vda", path="/d/root.qcow2", backing_path="/c/base.qcow2"),
        DiskSpec(target="vdb", path="/d/data.raw", format="raw"),
    ),
    nics=(NicSpec(mac="52:54:00:12:34:56", bridge="br0"),),
    console_log_path="/d/console.log",
)


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    if not SCHEMA.exists():
        pytest.skip("libvirt's schemas are not installed")
    return etree.RelaxNG(etree.parse(SCHEMA))


@settings(max_examples=60, deadline=None)
@given(spec=specs())
def test_every_spec_fits_libvirts_schema(schema: etree.RelaxNG, spec: DomainSpec) -> None:
    xml = render_domain(spec)
    assert xml == render_domain(spec)
    root = etree.fromstring(xml)
    assert schema.validate(root), schema.error_log.last_error
    assert parse_metadata(xml) == (spec.epoch, spec.operation_id)
    entries = {entry.get("key"): entry.text or "" for entry in root.iterfind("metadata/*/*")}
    assert entries == dict(spec.metadata)
    files = [source.get("file") for source in root.iterfind("devices/disk/source")]
    assert files == [disk.path for disk in spec.disks] + [
        cdrom.path for cdrom in spec.cdroms if cdrom.path
    ]
    # Every chain is spelled out to its end.
    for disk in root.iterfind("devices/disk[@device='disk']"):
        assert len(disk.findall(".//backingStore")[-1]) == 0


@settings(max_examples=60, deadline=None)
@given(spec=specs(), epoch=st.integers(0, 2**62), operation_id=st.uuids())
def test_a_destination_differs_only_on_the_hosts_side(
    schema: etree.RelaxNG, spec: DomainSpec, epoch: int, operation_id: UUID
) -> None:
    xml = render_domain(spec)
    moved = for_destination(
        xml,
        epoch=epoch,
        operation_id=operation_id,
        console_path="/new/console",
        disk_sources={"vda": "/new/disk"},
        backing_sources={
            disk.backing_path: "/new/base" for disk in spec.disks if disk.backing_path
        },
    )
    root = etree.fromstring(moved)
    assert schema.validate(root)
    assert parse_metadata(moved) == (epoch, operation_id)
    assert len(root.findall("metadata/*")) == 1
    entries = {entry.get("key"): entry.text or "" for entry in root.iterfind("metadata/*/*")}
    assert entries == dict(spec.metadata)
    again = for_destination(moved, epoch=epoch, operation_id=operation_id)
    assert digest_xml(again) == digest_xml(moved)

    def guests_side(text: str) -> bytes:
        tree = etree.fromstring(text, etree.XMLParser(remove_blank_text=True))
        for gone in tree.xpath("metadata|//source|//format"):
            gone.getparent().remove(gone)
        return etree.tostring(tree, method="c14n2")

    assert guests_side(xml) == guests_side(moved)


def test_the_whole_document() -> None:
    root = etree.fromstring(render_domain(SPEC))
    assert root.findtext("name") == "web-1"
    assert root.findtext("uuid") == str(ID)
    assert root.find("devices/graphics/listen").get("address") == "127.0.0.1"  # type: ignore[union-attr]
    assert root.find("devices/serial/source").get("append") == "on"  # type: ignore[union-attr]
    assert root.find("devices/disk/driver").get("cache") == "none"  # type: ignore[union-attr]


def test_markup_in_values_stays_text() -> None:
    evil = "/d/x'/><qemu:commandline/>&\"<!--"
    spec = replace(SPEC, disks=(DiskSpec(target="vda", path=evil),))
    root = etree.fromstring(render_domain(spec))
    assert root.find("devices/disk/source").get("file") == evil  # type: ignore[union-attr]
    assert not root.xpath("//*[contains(name(), 'qemu')]")


@pytest.mark.parametrize("path", ["relative.qcow2", "/a/../b", "/nul\0", "json:{}", "/esc\x1b"])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        render_domain(replace(SPEC, disks=(DiskSpec(target="vda", path=path),)))


def test_foreign_metadata_is_kept_and_ours_replaced() -> None:
    xml = render_domain(SPEC).replace(
        "<metadata>", '<metadata><other:thing xmlns:other="urn:other">kept</other:thing>'
    )
    moved = for_destination(xml, epoch=8, operation_id=OPERATION)
    assert "kept" in moved
    assert parse_metadata(moved) == (8, OPERATION)
    bare = "<domain type='qemu'><name>x</name></domain>"
    assert parse_metadata(bare) is None
    assert parse_metadata(for_destination(bare, epoch=1, operation_id=OPERATION)) == (1, OPERATION)


def test_metadata_that_is_not_ours_or_broken() -> None:
    own = (
        f"<innkeeper:guest xmlns:innkeeper='https://innkeeper.dev/xmlns/1'"
        f" epoch='3' operation='{OPERATION}'/>"
    )
    assert metadata_of(own) == (3, OPERATION)
    assert metadata_of(own.replace("'3'", "'x'")) is None
    assert metadata_of("<guest/>") is None
    assert metadata_of("no xml") is None
    assert parse_metadata("no xml") is None


def test_entities_are_not_resolved() -> None:
    bomb = (
        '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
        "<domain type='qemu'><name>&e;</name></domain>"
    )
    assert "root:" not in for_destination(bomb, epoch=1, operation_id=OPERATION)


def test_what_a_cpu_comparison_needs() -> None:
    xml = "<domain type='kvm'><os><type arch='x86_64'>hvm</type></os><cpu mode='custom'/></domain>"
    demand = cpu_demand(xml)
    assert (demand.domain_type, demand.arch, demand.cpu_xml) == (
        "kvm",
        "x86_64",
        '<cpu mode="custom"/>',
    )
    assert cpu_demand(render_domain(SPEC)).cpu_xml is None


def test_the_agents_channel() -> None:
    xml = render_domain(SPEC)
    assert not is_agent_connected(xml)
    target = 'name="org.qemu.guest_agent.0"'
    assert is_agent_connected(xml.replace(target, f'{target} state="connected"'))
    assert not is_agent_connected(xml.replace(target, f'{target} state="disconnected"'))


def test_the_digest_ignores_formatting() -> None:
    xml = render_domain(SPEC)
    assert digest_xml(xml) == digest_xml(xml.replace("\n", "").replace("  ", ""))
    assert digest_xml(xml) != digest_xml(render_domain(replace(SPEC, epoch=8)))
