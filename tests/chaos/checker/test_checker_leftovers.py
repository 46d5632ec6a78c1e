"""The checker names whatever is left behind without an owner."""

import fcntl
import subprocess
import uuid
from contextlib import suppress
from typing import Any

import pytest

from lab.handle import Lab
from tests.chaos.checker.fleet_look import look_at_fleet
from tests.chaos.checker.sabotage import Find, file, names, sql, state_dir
from tests.waiting import wait_until

pytestmark = pytest.mark.lab

ORPHANS = {
    "a file": "instances/00000000-0000-4000-8000-000000000000/root.qcow2",
    "a file of nobody": "instances/lost+found/file",
    "a probe": ".innkeeper-probe-00000000-0000-4000-8000-000000000000",
    "a partial download": "images/.partial/0000",
}


@pytest.mark.parametrize("pool", ["local", "shared"])
@pytest.mark.parametrize("path", ORPHANS.values(), ids=ORPHANS)
def test_a_file_without_owner(lab: Lab, find: Find, pool: str, path: str) -> None:
    root = state_dir(lab, lab.hosts[0]) if pool == "local" else lab.layout.shared
    with file(root / path):
        found = find()
        assert names(found) == {"nothing_orphaned"}
        assert all(path in violation.what or "instances" in path for violation in found)


def test_files_that_a_guest_left_behind(lab: Lab, find: Find, moved_guest: dict[str, Any]) -> None:
    src, dst = state_dir(lab, moved_guest["src"]), state_dir(lab, moved_guest["dst"])
    for root, path in (
        (src, f"instances/{moved_guest['id']}/root.qcow2"),
        (src, f"consoles/{moved_guest['id']}.log"),
        (dst, f"instances/{moved_guest['id']}/.root.qcow2.half-made"),
        (lab.layout.shared, f"instances/{moved_guest['id']}/.vdb.qcow2.half-made"),
    ):
        with file(root / path):
            found = find()
            assert names(found) == {"nothing_orphaned"}, path
            assert found[0].timeline


def test_files_in_a_pool_that_the_guest_does_not_name(
    lab: Lab, find: Find, moved_guest: dict[str, Any]
) -> None:
    assert find() == []
    name_pool = (
        "UPDATE instances SET spec = jsonb_set(spec, '{{disks,0,pool}}', '{}') WHERE id = %s"
    )
    with sql(lab, name_pool.format("null"), name_pool.format('"shared"'), moved_guest["id"]):
        found = find()
    assert names(found) == {"nothing_orphaned"}
    assert all("innkeeper-shared" in violation.what for violation in found)


@pytest.mark.parametrize("where", ["run/innkeeper/locks", "innkeeper/images/.locks"])
def test_a_lock_that_is_held(lab: Lab, find: Find, moved_guest: dict[str, Any], where: str) -> None:
    lock = lab.layout.host(moved_guest["dst"]) / where / f"{moved_guest['id']}.lock"
    with lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert names(find()) == {"nothing_orphaned"}


def test_claims_that_are_missing_or_too_many(
    lab: Lab, find: Find, moved_guest: dict[str, Any]
) -> None:
    move = "UPDATE claims SET host = '{}' WHERE instance_id = %s"
    with sql(
        lab, move.format(moved_guest["src"]), move.format(moved_guest["dst"]), moved_guest["id"]
    ):
        found = find()
    assert names(found) == {"nothing_orphaned"}
    assert len(found) == 2


def test_a_domain_without_a_record(lab: Lab, find: Find) -> None:
    host = lab.hosts[0]
    script = lab.layout.host(host) / "run" / "stranger.xml"
    script.write_text(
        "<domain type='qemu'><name>stranger</name><memory unit='MiB'>64</memory>"
        "<os><type>hvm</type></os></domain>"
    )
    lab.exec(host, ["virsh", "define", "/run/stranger.xml"])
    try:
        assert names(find()) == {"nothing_orphaned"}
    finally:
        lab.exec(host, ["virsh", "undefine", "stranger"])
        script.unlink()


def test_a_process_without_a_domain(lab: Lab, find: Find) -> None:
    host, own = lab.hosts[0], uuid.uuid4()
    options = ["-machine", "none", "-S", "-nodefaults", "-display", "none", "-uuid", str(own)]
    argv = lab.host_command(host, ["qemu-system-x86_64", *options])
    entered = subprocess.Popen(argv)

    def pids() -> list[int]:
        return [qemu.pid for qemu in look_at_fleet(lab).qemus if qemu.id == own]

    try:
        wait_until(lambda: bool(pids()), what="the process runs")
        assert names(find()) == {"nothing_orphaned"}
    finally:
        with suppress(ProcessLookupError):
            for pid in pids():
                subprocess.run(["kill", "-KILL", str(pid)], check=True)
        entered.wait(10)
