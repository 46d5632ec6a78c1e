"""The machine that was asked for: from the request to the guest's domain, on another host too."""

from pathlib import Path
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import HostUnsuitable, InvalidRequest
from lab.handle import Lab
from models.instance import Instance
from models.session import Database
from tests.chaos.virsh import virsh
from tests.workflow.conftest import files_of
from virt.domain_xml import host_demand

pytestmark = pytest.mark.lab


def test_a_uefi_guest_keeps_its_machine_wherever_it_goes(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    made = client.spawn(
        **{
            **boot_guest,
            "name": name,
            "host": a,
            "wait": "running",
            "vcpus": 2,
            "memory_mib": 128,
            "metadata": {"<owner>": "a & b"},
            "hardware": {
                "machine": "pc-q35-7.2",
                "firmware": "uefi",
                "root_bus": "scsi",
                "topology": {"sockets": 1, "cores": 2, "threads": 1},
                "watchdog": "reset",
                "video": "none",
            },
        }
    ).wait(120)
    row = records.run(lambda session: session.get_one(Instance, made["id"]))
    assert row.guest_abi["machine"] == "pc-q35-7.2"
    assert row.guest_abi["uefi_code_path"] == "/usr/share/OVMF/OVMF_CODE_4M.fd"
    before = virsh(lab, a, "dumpxml", "--inactive", name)
    assert 'bus="scsi"' in before.replace("'", '"')
    assert "a &amp; b" in before

    client.migrate(name, dst=b).wait(180)
    after = virsh(lab, b, "dumpxml", "--inactive", name)
    assert host_demand(after) == host_demand(before)
    assert "a &amp; b" in after
    assert any(Path(file).name == "uefi-variables.fd" for file in files_of(lab, b, made["id"]))
    assert files_of(lab, a, made["id"]) == []

    client.delete(name).wait(60)
    assert files_of(lab, b, made["id"]) == []


def test_what_a_host_lacks_and_what_no_machine_has(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    wanted = {**boot_guest, "name": name, "host": lab.hosts[0]}
    with pytest.raises(HostUnsuitable, match=r"has no machine type pc-q35-99\.1; it offers"):
        client.spawn(**wanted, hardware={"machine": "pc-q35-99.1"}).wait(60)
    with pytest.raises(InvalidRequest, match="has no IDE"):
        client.spawn(**wanted, hardware={"machine": "pc-q35-7.2", "root_bus": "ide"}).wait(60)
