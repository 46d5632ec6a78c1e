"""Whole documents of some typical guests, as they were agreed on.

To renew them after a change that is meant: INNKEEPER_TEST_RENEW=1 scripts/test
tests/unit/virt/test_domain_golden.py
"""

import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from lxml import etree

from virt.domain_xml import (
    CdromSpec,
    DiskSpec,
    DomainSpec,
    KernelSpec,
    NicSpec,
    RemoteSource,
    TopologySpec,
    UefiSpec,
    render_domain,
)

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")

SMALL = DomainSpec(
    instance_id=UUID("6d0c6c2e-5b6e-4d1a-9c38-0c8f6a4f8a11"),
    name="web-1",
    epoch=7,
    operation_id=UUID("0b9f8c9e-9a51-4a5f-8a52-3d7f7b3f1c22"),
    vcpus=1,
    memory_mib=256,
    machine="pc-i440fx-7.2",
    disks=(
        DiskSpec(
            target="vda",
            path="/pool/instances/web-1/root.qcow2",
            backing_path="/pool/images/base",
            boot_order=1,
        ),
    ),
    console_log_path="/var/lib/innkeeper/consoles/web-1.log",
)
GUESTS = {
    "small": SMALL,
    "server": replace(
        SMALL,
        vcpus=8,
        memory_mib=16384,
        machine="pc-q35-7.2",
        domain_type="kvm",
        cpu="Westmere",
        topology=TopologySpec(sockets=1, cores=4, threads=2),
        uefi=UefiSpec(
            code_path="/usr/share/OVMF/OVMF_CODE_4M.fd",
            template_path="/usr/share/OVMF/OVMF_VARS_4M.fd",
            nvram_path="/pool/instances/web-1/uefi-variables.fd",
        ),
        disks=(
            *SMALL.disks,
            DiskSpec(
                target="sda",
                path="/pool/instances/web-1/sda.raw",
                format="raw",
                bus="scsi",
                io="native",
                detect_zeroes="unmap",
                serial="data-1",
            ),
        ),
        cdroms=(CdromSpec(target="sdb", path="/pool/instances/web-1/config.iso", bus="sata"),),
        nics=(
            NicSpec(
                mac="52:54:00:12:34:56",
                bridge="br0",
                filter_name="clean-traffic",
                addresses=("192.0.2.10", "192.0.2.11"),
                mtu=1450,
                boot_order=2,
            ),
        ),
        watchdog="reset",
        metadata=(("owner", "O'Brien & <sons>"), ("purpose", "shop")),
    ),
    "old-hardware": replace(
        SMALL,
        disks=(
            DiskSpec(
                target="hda",
                path="/pool/instances/web-1/root.raw",
                format="raw",
                bus="ide",
                boot_order=1,
            ),
        ),
        cdroms=(CdromSpec(target="hdb", path=None, boot_order=2),),
        nics=(NicSpec(mac="52:54:00:12:34:56", bridge="br0", model="rtl8139"),),
        has_agent_channel=False,
        has_rng=False,
        has_balloon=False,
    ),
    "instant": replace(
        SMALL,
        disks=(
            DiskSpec(
                target="vda",
                path="/pool/instances/web-1/root.qcow2",
                remote_backing=RemoteSource(
                    protocol="https",
                    host="images.example",
                    name="noble.raw",
                    readahead_bytes=262144,
                    timeout_s=10,
                ),
                copies_on_read=True,
                error_policy="stop",
                rerror_policy="stop",
                boot_order=1,
            ),
        ),
    ),
    "direct-boot": replace(
        SMALL,
        kernel=KernelSpec(
            kernel_path="/pool/images/kernel",
            ramdisk_path="/pool/images/ramdisk",
            command_line="console=ttyS0 root=/dev/vda1 quiet",
        ),
        video="none",
        has_vnc=False,
    ),
}


@pytest.mark.parametrize("name", GUESTS)
def test_the_document_is_the_one_that_was_agreed_on(name: str) -> None:
    golden = GOLDEN / f"{name}.xml"
    xml = render_domain(GUESTS[name])
    if os.environ.get("INNKEEPER_TEST_RENEW"):
        golden.write_text(xml)
    assert xml == golden.read_text()


def test_libvirts_own_schema_takes_all_of_them() -> None:
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    goldens = sorted(GOLDEN.glob("*.xml"))
    assert {path.stem for path in goldens} == set(GUESTS)
    for path in goldens:
        assert schema.validate(etree.parse(path)), (path.name, schema.error_log.last_error)
