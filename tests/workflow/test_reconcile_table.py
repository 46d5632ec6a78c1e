"""What becomes of a migration that fails in every way libvirt knows: each row for real.

One guest goes through all rows. Its heartbeats are read on both hosts all the time: it must never
have run twice. The other rows are told in docs/design/reconcile.md.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError
from innkeeper.operation import Operation
from lab.handle import Lab
from tests.chaos.checker.consoles import ConsoleWatch
from tests.chaos.virsh import virsh
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on, files_of, remove
from tests.workflow.guest_shell import run_in_guest
from tests.workflow.test_migrate import assert_only_on, begin_slow_migration, hurry

pytestmark = pytest.mark.lab

LIBVIRT_PORT = 16509
INSTANCES = "/var/lib/innkeeper/instances"


@dataclass
class Row:
    """A migration under way, and the means to break it."""

    lab: Lab
    client: Innkeeper
    guest: str
    guest_id: str
    src: str
    dst: str

    def begin(self) -> Operation:
        return begin_slow_migration(self.client, self.lab, self.guest, self.src, self.dst)

    def hurry(self) -> None:
        hurry(self.lab, self.guest, self.src)

    def restart(self, role: str) -> None:
        self.lab.kill(role)
        self.lab.start(role)

    def state_on(self, host: str) -> str | None:
        return domains_on(self.lab, host).get(self.guest)

    def arrives_paused(self) -> None:
        """Wait until libvirt's Finish has been carried out on the destination."""

        def has_arrived() -> bool:
            told = virsh(self.lab, self.dst, "domstate", "--reason", self.guest)
            return told.strip() == "paused (user)"

        wait_until(has_arrived, what="the guest has arrived")

    def ends_rolled_back(self, operation: Operation, *codes: str) -> InnkeeperError:
        with pytest.raises(InnkeeperError) as caught:
            operation.wait(150)
        error = caught.value
        assert (error.effect, operation.view().state) == ("rolled_back", "failed"), error
        assert error.code in codes, error
        assert_only_on(self.lab, self.guest, self.src)
        assert files_of(self.lab, self.dst, self.guest_id) == []
        view = self.client.instance(self.guest)
        assert (view.host, view.state, view.operation_id) == (self.src, "active", None)
        return error

    def ends_moved(self, operation: Operation) -> None:
        assert operation.wait(150)["host"] == self.dst
        assert_only_on(self.lab, self.guest, self.dst)
        wait_until(
            lambda: files_of(self.lab, self.src, self.guest_id) == [],
            what="nothing is left on the source",
        )


@pytest.fixture(scope="module")
def watch(lab: Lab) -> Iterator[ConsoleWatch]:
    with ConsoleWatch(lab) as watch:
        yield watch


@pytest.fixture(scope="module")
def guest(lab: Lab, client: Innkeeper) -> Iterator[str]:
    env, chosen = lab.env(), f"r-{uuid.uuid4().hex[:8]}"
    client.spawn(
        name=chosen,
        host=lab.hosts[0],
        image=env["INNKEEPER_LAB_IMAGE"],
        sha256=env["INNKEEPER_LAB_IMAGE_SHA256"],
        memory_mib=256,
        wait="agent",
    ).wait(150)
    yield chosen
    lab.heal()
    remove(client, chosen)


@pytest.fixture
def row(lab: Lab, client: Innkeeper, guest: str, watch: ConsoleWatch) -> Iterator[Row]:
    view = client.instance(guest)
    dst = next(host for host in lab.hosts[:2] if host != view.host)
    yield Row(lab, client, guest, str(view.id), str(view.host), dst)
    assert watch.violations() == []


def test_the_sources_libvirtd_dies_while_it_copies(row: Row) -> None:
    """QEMU goes on running there; the new libvirtd ends the job, and the guest is sent again."""
    operation = row.begin()
    row.restart(f"libvirtd:{row.src}")

    def is_sent_again() -> bool:
        row.hurry()
        return operation.view().state != "running"

    wait_until(is_sent_again, timeout_s=120, what="the migration ends")
    row.ends_moved(operation)


def test_the_sources_libvirtd_dies_before_it_hears_of_the_end(row: Row) -> None:
    """The source stays paused by the migration, the destination has all of it and is paused."""
    operation = row.begin()
    row.lab.cut(row.dst, row.src, one_way=True, port=LIBVIRT_PORT)
    try:
        row.hurry()
        row.arrives_paused()
        row.restart(f"libvirtd:{row.src}")
    finally:
        row.lab.heal()
    row.ends_rolled_back(operation, "migration_aborted")


def test_the_destinations_libvirtd_dies_while_it_copies(row: Row) -> None:
    operation = row.begin()
    row.restart(f"libvirtd:{row.dst}")
    row.ends_rolled_back(operation, "migration_aborted", "migration_error")


def test_somebody_destroys_the_arriving_domain(row: Row) -> None:
    operation = row.begin()
    virsh(row.lab, row.dst, "destroy", row.guest)
    row.ends_rolled_back(operation, "migration_error")


def test_the_destination_is_full(row: Row, crash: CrashDirectory) -> None:
    """After the checks the room has gone: what the guest has written does not fit any more."""
    point = "live_migrate.prepare_destination:acting"
    run_in_guest(
        row.lab, row.src, row.guest, "dd if=/dev/urandom of=/dev/vda bs=1M count=6 seek=20; sync"
    )
    crash.arm_hold(point)
    operation = row.client.migrate(row.guest, dst=row.dst)
    assert crash.wait_held(point)
    with _small(row):
        crash.release(point)
        with pytest.raises(InnkeeperError) as caught:
            operation.wait(150)
    error = caught.value
    assert (error.code, error.effect) == ("migration_error", "rolled_back"), error
    assert "o space left" in str(error), error
    assert_only_on(row.lab, row.guest, row.src)
    assert files_of(row.lab, row.dst, row.guest_id) == []


@contextmanager
def _small(row: Row) -> Iterator[None]:
    """Let the destination's guests have a file system that a disk's tables just fit on."""
    options = ["-o", "size=2m", "tmpfs", INSTANCES]
    row.lab.exec(row.dst, ["mount", "-t", "tmpfs", *options])
    try:
        yield
    finally:
        left = row.lab.exec(row.dst, ["ls", "-A", INSTANCES]).stdout
        row.lab.exec(row.dst, ["umount", INSTANCES])
    assert left == ""


def test_no_packet_passes_while_it_copies(row: Row) -> None:
    """The dead connections are ended before QEMU, and with it the guest, stands still for them."""
    operation = row.begin()
    row.lab.cut(row.src, row.dst)
    try:
        error = row.ends_rolled_back(operation, "migration_aborted", "migration_error")
        assert row.state_on(row.src) == "running"
    finally:
        row.lab.heal()
    assert error.host == row.src
    story = next(step for step in operation.view().steps if step.name == "migrate").log
    assert any("connections to it were ended" in line["text"] for line in story), story
