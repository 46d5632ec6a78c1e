"""Guests that boot from their image's source at once, and become independent of it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import Busy, DigestMismatch, InnkeeperError, InvalidRequest, PrecheckFailed
from lab.handle import Lab
from lab.network import Subnet
from lab.range_server import RangeServer
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.virt.instant_sources import InstantSources
from tests.waiting import wait_until
from tests.workflow.conftest import (
    assert_nothing_left,
    domains_on,
    files_of,
    guest_exec,
)

pytestmark = pytest.mark.lab
BOOT_S = 120.0
HOST = "hv-a"
READ_BESIDE_THE_CACHE = "busybox dd if=/dev/vda of=/dev/null bs=1M skip=40 count=8"


@pytest.fixture
def sources() -> Iterator[InstantSources]:
    sources = InstantSources()
    yield sources
    sources.stop()


@pytest.fixture
def hydrating(lab: Lab, crash: CrashDirectory) -> Iterator[None]:
    """The host hydrates by itself, at once."""
    restart_worker(lab, {"INNKEEPER_HYDRATION_DELAY_S": "0"})
    yield
    crash.clear()
    restart_worker(lab, {})


def restart_worker(lab: Lab, env: dict[str, str]) -> None:
    lab.kill(f"worker:{HOST}")
    lab.start(f"worker:{HOST}", env=env)


def offer(
    sources: InstantSources, lab: Lab, *, linux: bool = False, **more: Any
) -> tuple[RangeServer, dict[str, Any]]:
    fields = sources.offer(lab, linux=linux)
    assert sources.server is not None
    small = {"memory_mib": 256, "wait": "agent"} if linux else {"memory_mib": 64, "wait": "console"}
    return sources.server, {**fields, "host": HOST, **small, **more}


def disk_of(records: Database, name: str) -> dict[str, Any]:
    with records.transaction() as session:
        row = session.execute(
            text(
                "SELECT d.*, i.state, i.power_state, i.fault, i.domain_xml FROM disks d "
                "JOIN instances i ON i.id = d.instance_id "
                "WHERE i.name = :n AND i.state <> 'deleted'"
            ),
            {"n": name},
        ).one()
    return dict(row._mapping)


def events_of(records: Database, instance_id: object) -> list[str]:
    with records.transaction() as session:
        rows = session.execute(
            text("SELECT kind FROM events WHERE instance_id = :i ORDER BY id"), {"i": instance_id}
        )
        return [row.kind for row in rows if row.kind.startswith("instance.")]


def fault_of(records: Database, name: str) -> str | None:
    return (disk_of(records, name)["fault"] or {}).get("code")


def assert_hydrated(lab: Lab, records: Database, name: str, sha256: str) -> None:
    """The row, the stored XML, both of libvirt's and the files speak of the cached image alone."""
    disk = disk_of(records, name)
    assert (disk["remote_url"], disk["file"]) == (None, "root.qcow2")
    assert disk["backing_sha256"] == sha256
    assert disk["hydrated_at"] is not None
    ours = disk["domain_xml"]
    dump = ["virsh", "dumpxml", name]
    theirs = [lab.exec(HOST, [*dump, *flag]).stdout for flag in ([], ["--inactive"])]
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
    server, fields = offer(sources, lab, linux=True)
    client.spawn(name=name, **fields).wait(BOOT_S)
    assert server.sent_bytes < server.path.stat().st_size
    assert disk_of(records, name)["remote_url"] == server.url
    with pytest.raises(PrecheckFailed) as refused:
        client.migrate(name, dst="hv-b").wait(BOOT_S)
    assert [f["code"] for f in refused.value.details["failures"]] == ["check_not_hydrated"]
    write = "busybox dd if=/dev/zero of=/dev/vda bs=1M seek=60 count=1; busybox sync"
    guest_exec(lab, HOST, name, "/bin/sh", "-c", write)

    operation = client.hydrate(name)
    operation.wait(BOOT_S)

    assert operation.view().steps[1].detail["how"] == "copied"
    assert_hydrated(lab, records, name, fields["sha256"])
    assert client.hydrate(name).wait(BOOT_S)["state"] == "active"
    assert client.migrate(name, dst="hv-b").wait(BOOT_S)["host"] == "hv-b"


def test_a_guest_whose_source_goes_away_is_held_and_runs_on_when_it_is_back(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    server, fields = offer(sources, lab, linux=True)
    instance_id = client.spawn(name=name, **fields).wait(BOOT_S)["id"]
    server.stop()
    guest_exec(lab, HOST, name, "/bin/sh", "-c", READ_BESIDE_THE_CACHE)
    wait_until(lambda: fault_of(records, name) == "source_lost", what="the loss is written down")
    assert client.instance(name).state == "active"
    assert domains_on(lab, HOST)[name] == "paused"

    # So slowly that the guest is not hydrated before it runs on.
    server.mib_s = 2
    server.start()

    wait_until(lambda: domains_on(lab, HOST)[name] == "running", what="the guest runs on")
    wait_until(lambda: fault_of(records, name) is None, what="the fault is gone")
    seen = events_of(records, instance_id)
    assert seen.index("instance.source_lost") < seen.index("instance.source_back")
    wait_until(lambda: disk_of(records, name)["power_state"] == "running", what="so the record")
    # Its image was fetched as soon as the source was lost: a guest in need has no time to lose.
    server.mib_s = 0
    wait_until(lambda: hydrate(client, name), what="it is hydrated")
    assert_hydrated(lab, records, name, fields["sha256"])


def hydrate(client: Innkeeper, name: str) -> bool:
    try:
        client.hydrate(name).wait(BOOT_S)
    except Busy:
        return False
    return True


def test_a_guest_that_may_not_wait_for_its_source_is_given_up_and_can_be_started_again(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    server, fields = offer(sources, lab, linux=True, source_lost="fail")
    instance_id = client.spawn(name=name, **fields).wait(BOOT_S)["id"]
    server.stop()
    guest_exec(lab, HOST, name, "/bin/sh", "-c", READ_BESIDE_THE_CACHE)

    wait_until(lambda: client.instance(name).state == "error", what="the guest is given up")

    assert fault_of(records, name) == "source_lost"
    assert "instance.given_up" in events_of(records, instance_id)
    assert domains_on(lab, HOST)[name] == "shut off"
    server.start()
    assert client.start(name).wait(BOOT_S)["state"] == "active"


def test_a_guest_that_ran_on_other_bytes_than_promised_is_stopped_for_good(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    _, fields = offer(sources, lab, sha256="0" * 64)
    spawned = client.spawn(name=name, **fields).wait(BOOT_S)

    with pytest.raises(DigestMismatch):
        client.hydrate(name).wait(BOOT_S)

    assert client.instance(name).state == "error"
    assert fault_of(records, name) == "digest_mismatch"
    assert domains_on(lab, HOST)[name] == "shut off"
    with pytest.raises(DigestMismatch):
        client.start(name).wait(BOOT_S)
    assert domains_on(lab, HOST)[name] == "shut off"
    client.delete(name).wait(BOOT_S)
    assert_nothing_left(lab, records, spawned["id"])


def test_a_guest_that_is_off_is_hydrated_at_rest(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    server, fields = offer(sources, lab)
    client.spawn(name=name, **fields).wait(BOOT_S)
    client.stop(name, force=True).wait(BOOT_S)
    assert client.start(name).wait(BOOT_S)["state"] == "active"
    client.stop(name, force=True).wait(BOOT_S)

    operation = client.hydrate(name)
    assert operation.wait(BOOT_S)["state"] == "stopped"

    assert operation.view().steps[1].detail["how"] == "rebased at rest"
    assert_hydrated(lab, records, name, fields["sha256"])
    server.stop()
    assert client.start(name).wait(BOOT_S)["state"] == "active"


def test_an_nbd_export_is_booted_from_and_fetched(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    server, fields = offer(sources, lab)
    address = Subnet(lab.description.subnet).services_address
    argv = ["qemu-nbd", "-r", "-t", "-e", "4", "-b", address, "-x", "image", "-f", "raw"]
    with subprocess.Popen([*argv, str(server.path)]) as export:
        try:
            client.spawn(name=name, **{**fields, "image": f"nbd://{address}/image"}).wait(BOOT_S)
            assert disk_of(records, name)["remote_url"] == f"nbd://{address}:10809/image"
            client.hydrate(name).wait(BOOT_S)
        finally:
            export.kill()
    assert server.sent_bytes == 0
    assert_hydrated(lab, records, name, fields["sha256"])


def test_a_host_brings_the_image_and_hydrates_its_guest_by_itself(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    sources: InstantSources,
    hydrating: None,
    name: str,
) -> None:
    del hydrating
    _, fields = offer(sources, lab)
    client.spawn(name=name, **fields).wait(BOOT_S)

    wait_until(lambda: disk_of(records, name)["remote_url"] is None, what="it is hydrated")

    assert_hydrated(lab, records, name, fields["sha256"])
    newest = {view.kind: view for view in reversed(client.operations(limit=10))}
    assert newest["prefetch"].state == "succeeded"
    assert newest["prefetch"].instance_id is None
    assert newest["hydrate"].requested_by == "hydration"


def test_what_cannot_be_booted_from_is_refused_and_leaves_nothing(
    client: Innkeeper, lab: Lab, records: Database, sources: InstantSources, name: str
) -> None:
    server, fields = offer(sources, lab)
    refusals: dict[str, tuple[dict[str, Any], type[InnkeeperError], str]] = {
        "not allowed": ({"image": "http://127.0.0.1/image.raw"}, InnkeeperError, "instant_boot"),
        "signed": ({"image": f"{server.url}?sig=secret"}, InvalidRequest, "query"),
        "no digest": ({"sha256": None}, InvalidRequest, "digest"),
        "qcow2": ({"image_format": "qcow2"}, InvalidRequest, "raw"),
        "too large": ({"image": server.url, "disk_gib": 1}, InnkeeperError, "disk"),
    }
    server.path.open("r+b").truncate(2 << 30)
    for _case, (change, error, word) in refusals.items():
        with pytest.raises(error) as refused:
            client.spawn(name=name, **{**fields, **change}).wait(BOOT_S)
        said = f"{refused.value.message} {refused.value.hint}"
        assert word in said
        assert "secret" not in said
    server.has_ranges = False
    with pytest.raises(InvalidRequest, match="ranges"):
        client.spawn(name=name, **fields).wait(BOOT_S)
    server.has_ranges = True
    with server.path.open("r+b") as file:
        file.write(b"QFI\xfb\x00\x00\x00\x03")
    with pytest.raises(InnkeeperError, match="raw"):
        client.spawn(name=name, **fields).wait(BOOT_S)
    with records.transaction() as session:
        ids = session.execute(text("SELECT id FROM instances WHERE name = :n"), {"n": name})
        made = [str(row.id) for row in ids]
    assert made
    for instance_id in made:
        assert_nothing_left(lab, records, instance_id)
