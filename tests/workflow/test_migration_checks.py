"""Each check of a live migration fails for real; the guest and both hosts stay as they were."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import HostUnsuitable, PrecheckFailed
from innkeeper.types import MigrationCheck
from lab.handle import Lab
from models.session import Database
from tests.chaos.faults.clock_faults import ClockSkewed
from tests.chaos.virsh import define_namesake, undefine_namesake, virsh
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.broken_host import full_disk
from tests.workflow.conftest import domains_on, files_of, remove

pytestmark = pytest.mark.lab

POOL = "/var/lib/innkeeper"
FILTER = "clean-traffic"

Guest = SimpleNamespace
Trouble = Callable[[Lab, Database, Guest], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def guest(client: Innkeeper, lab: Lab) -> Iterator[Guest]:
    """One running guest on the first host, with a card; its base is in both hosts' caches."""
    env, (a, b) = lab.env(), lab.hosts[:2]
    image, sha256 = env["INNKEEPER_LAB_BOOT_IMAGE"], env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"]
    name = f"t-{uuid.uuid4().hex[:8]}"
    fields = {"image": image, "sha256": sha256, "memory_mib": 64, "bridge": "br0"}
    record = client.spawn(name=name, host=a, **fields).wait(120)
    client.prewarm(image, sha256=sha256, hosts=[b]).wait(120)
    yield SimpleNamespace(name=name, id=record["id"], src=a, dst=b, sha256=sha256)
    remove(client, name)


@contextmanager
def snapshot(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    virsh(lab, guest.src, "snapshot-create-as", guest.name, "s1")
    yield
    virsh(lab, guest.src, "snapshot-delete", guest.name, "s1")


@contextmanager
def block_job(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    copy = f"{POOL}/copy-of-{guest.name}.qcow2"
    virsh(lab, guest.src, "blockcopy", guest.name, "vda", "--dest", copy, "--transient-job")
    yield
    virsh(lab, guest.src, "blockjob", guest.name, "vda", "--abort")
    lab.exec(guest.src, ["rm", "-f", copy])


@contextmanager
def attached(lab: Lab, guest: Guest, xml: str, mark: str) -> Iterator[None]:
    virsh(lab, guest.src, "attach-device", guest.name, "/dev/stdin", "--live", stdin=xml)
    yield
    virsh(lab, guest.src, "detach-device", guest.name, "/dev/stdin", "--live", stdin=xml)
    # No system in the guest answers the request; a reset lets QEMU have its way.
    virsh(lab, guest.src, "reset", guest.name)
    wait_until(
        lambda: mark not in virsh(lab, guest.src, "dumpxml", guest.name),
        what="the device is gone",
    )


@contextmanager
def shared_memory(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    model = "<model type='ivshmem-plain'/><size unit='M'>4</size>"
    with attached(lab, guest, f"<shmem name='{guest.name}-m'>{model}</shmem>", "<shmem"):
        yield


@contextmanager
def encrypted_disk(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    path, secret = f"{POOL}/{guest.name}.luks", str(uuid.uuid4())
    lab.exec(
        guest.src,
        [
            *("qemu-img", "create", "-q", "--object", "secret,id=s,data=test-only"),
            *("-f", "luks", "-o", "key-secret=s,iter-time=10", path, "1M"),
        ],
    )
    described = f"<uuid>{secret}</uuid><usage type='volume'><volume>{path}</volume></usage>"
    stdin = f"<secret ephemeral='no' private='no'>{described}</secret>"
    virsh(lab, guest.src, "secret-define", "/dev/stdin", stdin=stdin)
    virsh(
        lab,
        guest.src,
        "secret-set-value",
        secret,
        "--file",
        "/dev/stdin",
        "--plain",
        stdin="test-only",
    )
    disk = (
        f"<disk type='file' device='disk'><source file='{path}'>"
        f"<encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>"
        "</source><driver name='qemu' type='raw'/><target dev='vdx' bus='virtio'/></disk>"
    )
    with attached(lab, guest, disk, "'vdx'"):
        yield
    virsh(lab, guest.src, "secret-undefine", secret)
    lab.exec(guest.src, ["rm", path])


@contextmanager
def bridge_down(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    lab.exec(guest.dst, ["ip", "link", "set", "br0", "down"])
    yield
    lab.exec(guest.dst, ["ip", "link", "set", "br0", "up"])


@contextmanager
def filter_missing(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    xml = virsh(lab, guest.dst, "nwfilter-dumpxml", FILTER)
    virsh(lab, guest.dst, "nwfilter-undefine", FILTER)
    yield
    virsh(lab, guest.dst, "nwfilter-define", "/dev/stdin", stdin=xml)


@contextmanager
def name_taken(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    define_namesake(lab, guest.dst, guest.name)
    yield
    assert domains_on(lab, guest.dst) == {guest.name: "shut off"}
    undefine_namesake(lab, guest.dst, guest.name)


@contextmanager
def uuid_taken(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    xml = (
        f"<domain type='qemu'><name>other</name><uuid>{guest.id}</uuid>"
        "<memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    )
    virsh(lab, guest.dst, "define", "/dev/stdin", stdin=xml)
    yield
    assert domains_on(lab, guest.dst) == {"other": "shut off"}
    virsh(lab, guest.dst, "undefine", "other")


@contextmanager
def port_filtered(lab: Lab, guest: Guest, port: int) -> Iterator[None]:
    lab.cut(guest.src, guest.dst, port=port)
    yield
    lab.heal(guest.src, guest.dst)


@contextmanager
def ports_rejected(lab: Lab, guest: Guest, how: str) -> Iterator[None]:
    """The destination's own firewall turns away what comes to any of QEMU's ports."""
    rule = how.replace("PORTS", "tcp dport 49152-49215")
    chain = f"chain c {{ type filter hook input priority 0; {rule}; }}"
    lab.exec(guest.dst, ["nft", f"table inet t {{ {chain}; }}"])
    yield
    lab.exec(guest.dst, ["nft", "delete table inet t"])


@contextmanager
def clock_wrong(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    fault = ClockSkewed(guest.dst, 7200)
    stage: Any = SimpleNamespace(lab=lab, redis=None, start=lab.start)
    fault.strike(stage)
    yield
    fault.mend(stage)


@contextmanager
def base_differs(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    (base,) = lab.exec(
        guest.dst, ["sh", "-c", f"ls {POOL}/images/{guest.sha256}.* | grep -v json"]
    ).stdout.split()
    lab.exec(guest.dst, ["cp", "-p", base, f"{base}.kept"])
    overwrite = f"printf X | dd of={base} bs=1 seek=1000 conv=notrunc status=none"
    lab.exec(guest.dst, ["sh", "-c", overwrite])
    yield
    lab.exec(guest.dst, ["mv", f"{base}.kept", base])


@contextmanager
def disk_full(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    with full_disk(lab, guest.dst):
        yield


@contextmanager
def hypervisor_older(lab: Lab, records: Database, guest: Guest) -> Iterator[None]:
    with records.transaction() as session:
        told = session.execute(
            text("SELECT qemu_version FROM hosts WHERE name = :n"), {"n": guest.src}
        ).scalar_one()
    set_version(records, guest.src, "99.1.0")
    yield
    set_version(records, guest.src, told)


def set_version(records: Database, host: str, version: str) -> None:
    with records.transaction() as session:
        session.execute(
            text("UPDATE hosts SET qemu_version = :v WHERE name = :n"),
            {"v": version, "n": host},
        )


TROUBLES: list[tuple[Trouble, set[str], str]] = [
    (snapshot, {"snapshots"}, "1 snapshots (s1)"),
    (block_job, {"block_job"}, "disk vda"),
    (shared_memory, {"device", "blocker"}, "shared memory"),
    (encrypted_disk, {"secret", "layers"}, "passphrase secret"),
    (bridge_down, {"network"}, "bridge br0 is down"),
    (filter_missing, {"network"}, FILTER),
    (name_taken, {"name_taken"}, "another domain of the name"),
    (uuid_taken, {"name_taken"}, "of nobody's"),
    (lambda lab, _, guest: port_filtered(lab, guest, 16509), {"reachable"}, "16509"),
    (lambda lab, _, guest: port_filtered(lab, guest, 49215), {"reachable"}, "49215"),
    *(
        (lambda lab, _, guest, how=how: ports_rejected(lab, guest, how), {"reachable"}, said)
        for how, said in (
            ("PORTS drop", "49215 within 3 s (a firewall drops?)"),
            ("PORTS reject", "(a firewall rejects?)"),
            ("PORTS reject with tcp reset", "(a firewall rejects?)"),
        )
    ),
    (clock_wrong, {"clock"}, "7200"),
    (base_differs, {"base"}, "of other content"),
    (disk_full, {"disk"}, "0 MiB free"),
    (hypervisor_older, {"hypervisor"}, "older than the 99.1.0"),
]
NAMES = [
    *("snapshot", "block_job", "shared_memory", "encrypted_disk", "bridge_down"),
    *("filter_missing", "name_taken", "uuid_taken", "libvirt_port", "qemu_port"),
    *("ports_dropped", "ports_rejected", "ports_reset", "clock"),
    *("base_differs", "disk_full", "hypervisor_older"),
]


@pytest.mark.parametrize(("trouble", "checks", "said"), TROUBLES, ids=NAMES)
def test_a_check_fails_and_nothing_changes(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    guest: Guest,
    trouble: Trouble,
    checks: set[str],
    said: str,
) -> None:
    with trouble(lab, records, guest):
        begun = time.monotonic()
        with pytest.raises(PrecheckFailed) as caught:
            client.migrate(guest.name, dst=guest.dst).wait(60)
        took_s = time.monotonic() - begun
        failures = caught.value.details["failures"]
        assert {each["check"] for each in failures} == checks
        assert said in caught.value.message
        assert all(each["hint"] and each["code"] == f"check_{each['check']}" for each in failures)
        # Libvirt by itself would try a filtered port for more than two minutes.
        assert took_s < 30
        assert_untouched(client, lab, records, guest)


def assert_untouched(client: Innkeeper, lab: Lab, records: Database, guest: Guest) -> None:
    """The guest runs where it was; no file, domain, claim or holder is left of the attempt."""
    view = client.instance(guest.name)
    assert (view.host, view.state, view.operation_id) == (guest.src, "active", None)
    assert domains_on(lab, guest.src)[guest.name] == "running"
    assert files_of(lab, guest.dst, guest.id) == []
    for host in (guest.src, guest.dst):
        assert list_probes(lab, host) == []
    with records.transaction() as session:
        claims = session.scalars(
            text("SELECT host FROM claims WHERE instance_id = :i"), {"i": guest.id}
        )
        assert list(claims) == [guest.src]


def list_probes(lab: Lab, host: str) -> list[str]:
    roots = (POOL, "/srv/innkeeper-shared")
    found = lab.exec(host, ["find", *roots, "-maxdepth", "1", "-name", ".innkeeper-probe-*"])
    return found.stdout.split()


@pytest.mark.parametrize("step", ["survey_guest", "check_destination", "check_source"])
def test_a_check_that_breaks_changes_nothing(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    guest: Guest,
    crash: CrashDirectory,
    step: str,
) -> None:
    """Nova leaves a guest in error here (bug 2044235)."""
    crash.arm_fail(f"live_migrate.{step}:inside")
    with pytest.raises((HostUnsuitable, PrecheckFailed)):
        client.migrate(guest.name, dst=guest.dst).wait(60)
    assert_untouched(client, lab, records, guest)


def test_the_checks_alone_tell_of_all_and_take_nothing(
    client: Innkeeper, lab: Lab, records: Database, guest: Guest
) -> None:
    epoch = client.instance(guest.name).epoch
    with bridge_down(lab, records, guest), name_taken(lab, records, guest):
        operation = client.check_migration(guest.name, dst=guest.dst)
        found = MigrationCheck.model_validate(operation.wait(60))
        assert_untouched(client, lab, records, guest)
    (destination,) = found.destinations
    assert (found.src, destination.host, found.can_migrate) == (guest.src, guest.dst, False)
    assert {c.check for c in destination.checks if not c.passed} == {"network", "name_taken"}
    passed = {each.check for each in destination.checks if each.passed}
    assert passed >= {"host_down", "group", "cpu", "disk", "base", "reachable", "domain", "clock"}
    assert client.instance(guest.name).epoch == epoch


def test_the_command_prints_the_table_for_every_candidate(lab: Lab, guest: Guest) -> None:
    argv = [str(Path(sys.executable).with_name("innkeeper")), "migrate", guest.name, "--check"]
    env = {**os.environ, **lab.env()}
    shown = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert f"{guest.name} from {guest.src} to {guest.dst}: ok" in shown.stdout
    assert "hypervisor" in shown.stdout
    told = subprocess.run(
        [*argv, "--to", guest.src, "--json"], env=env, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == PrecheckFailed.exit_code
    (destination,) = MigrationCheck.model_validate_json(told.stdout).destinations
    assert [c.check for c in destination.checks if not c.passed] == ["same_host"]


def test_a_guest_that_is_held_can_be_asked_about(
    client: Innkeeper, lab: Lab, guest: Guest, crash: CrashDirectory
) -> None:
    crash.arm_hold("live_migrate.survey_guest:claimed")
    moving = client.migrate(guest.name, dst=guest.dst)
    with crash.held("live_migrate.survey_guest:claimed"):
        result = client.check_migration(guest.name, dst=guest.dst).wait(60)
        (destination,) = MigrationCheck.model_validate(result).destinations
        assert [c.check for c in destination.checks if not c.passed] == ["busy"]
    assert moving.wait(120)["host"] == guest.dst
    assert client.migrate(guest.name, dst=guest.src).wait(120)["host"] == guest.src
    for host in (guest.src, guest.dst):
        assert list_probes(lab, host) == []
