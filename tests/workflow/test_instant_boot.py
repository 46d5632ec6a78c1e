"""Guests that boot from their image's source at once, and become independent of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import PrecheckFailed
from lab.handle import Lab
from models.session import Database
from tests.virt.instant_sources import InstantSources
from tests.virt.range_server import RangeServer
from tests.workflow.conftest import files_of, guest_exec

pytestmark = pytest.mark.lab
BOOT_S = 120.0
HOST = "hv-a"


@pytest.fixture
def sources() -> Iterator[InstantSources]:
    sources = InstantSources()
    yield sources
    sources.stop()


def offer(sources: InstantSources, lab: Lab, **more: Any) -> tuple[RangeServer, dict[str, Any]]:
    fields = sources.offer(lab, linux=True)
    assert sources.server is not None
    return sources.server, {**fields, "memory_mib": 256, "host": HOST, "wait": "agent", **more}


def disk_of(records: Database, name: str) -> dict[str, Any]:
    with records.transaction() as session:
        row = session.execute(
            text(
                "SELECT d.*, i.state, i.fault, i.domain_xml FROM disks d JOIN instances i "
                "ON i.id = d.instance_id WHERE i.name = :n AND i.state <> 'deleted'"
            ),
            {"n": name},
        ).one()
    return dict(row._mapping)


def assert_hydrated(lab: Lab, records: Database, name: str, sha256: str) -> None:
    """The row, the stored XML, both of libvirt's and the files speak of the cached image alone."""
    disk = disk_of(records, name)
    assert (disk["remote_url"], disk["file"], disk["backing_sha256"]) == (
        None,
        "root.qcow2",
        sha256,
    )
    assert disk["hydrated_at"] is not None
    ours = disk["domain_xml"]
    theirs = [
        lab.exec(HOST, ["virsh", "dumpxml", name, *flag]).stdout for flag in ([], ["--inactive"])
    ]
    for xml in (ours, *theirs):
        assert "/root.qcow2" in xml
        assert f"{sha256}.raw" in xml
        assert "root.instant" not in xml
        assert "protocol=" not in xml
    names = [Path(f).name for f in files_of(lab, HOST, str(disk["instance_id"]))]
    assert [one for one in names if one.endswith("qcow2")] == ["root.qcow2"]


def test_a_guest_runs_before_its_image_is_here_and_moves_once_it_is(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    server, fields = offer(sources, lab)
    client.spawn(name=name, **fields).wait(BOOT_S)
    assert server.sent_bytes < server.path.stat().st_size
    assert disk_of(records, name)["remote_url"] == server.url
    with pytest.raises(PrecheckFailed) as refused:
        client.migrate(name, dst="hv-b").wait(BOOT_S)
    assert [f["code"] for f in refused.value.details["failures"]] == ["check_not_hydrated"]
    guest_exec(
        lab,
        HOST,
        name,
        "/bin/sh",
        "-c",
        "busybox dd if=/dev/zero of=/dev/vda bs=1M seek=60 count=1; sync",
    )

    operation = client.hydrate(name)
    operation.wait(BOOT_S)

    assert operation.view().steps[1].detail["how"] == "copied"
    assert_hydrated(lab, records, name, fields["sha256"])
    assert client.hydrate(name).wait(BOOT_S)["state"] == "active"
    assert client.migrate(name, dst="hv-b").wait(BOOT_S)["host"] == "hv-b"
