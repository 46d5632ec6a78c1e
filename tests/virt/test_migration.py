"""Live migration between two real hypervisors: both ways of storage, abort, adoption, failures."""

import time
from uuid import UUID, uuid4

import pytest

from innkeeper.errors import (
    DomainNotFound,
    HypervisorUnavailable,
    MigrationAborted,
    MigrationError,
    OutcomeUnknown,
)
from innkeeper.states import Effect, PowerState
from lab.handle import Lab
from tests.virt.conftest import Guest, Host, MakeGuest
from tests.waiting import PATIENCE_S, quickest, wait_until
from virt.domain_xml import for_destination, parse_metadata
from virt.hypervisor import MigrationJob, MigrationRequest
from virt.views import (
    PAUSED_MIGRATION,
    PAUSED_USER,
    RUNNING_MIGRATED,
    RUNNING_MIGRATION_CANCELED,
    STATE_PAUSED,
    STATE_RUNNING,
    JobStats,
)

pytestmark = pytest.mark.lab


def request(src: Host, dst: Host, guest: Guest, *, is_block: bool, **changes: object):  # type: ignore[no-untyped-def]
    moved: dict[str, object] = {
        "epoch": guest.spec.epoch + 1,
        "operation_id": uuid4(),
        "console_path": f"{guest.console}.dst",
    }
    if is_block:
        moved["disk_sources"] = {"vda": str(guest.overlay("dst"))}
    live = src.hypervisor.dump_xml(guest.id, migratable=True)
    inactive = src.hypervisor.dump_xml(guest.id, migratable=True, inactive=True)
    arguments: dict[str, object] = {
        "dst_uri": f"qemu+tcp://{dst.address}/system",
        "migrate_uri": f"tcp://{dst.address}",
        "dst_xml": for_destination(live, **moved),  # type: ignore[arg-type]
        "persistent_xml": for_destination(inactive, **moved),  # type: ignore[arg-type]
        "migrate_disks": ("vda",) if is_block else (),
        "is_unsafe": not is_block,
        "max_downtime_ms": 300,
    }
    return MigrationRequest(**{**arguments, **changes})  # type: ignore[arg-type]


def started(host: Host, guest: Guest) -> Guest:
    host.hypervisor.define(guest.xml)
    host.hypervisor.ensure_started(guest.id)
    return guest


def follow(job: MigrationJob, host: Host) -> list[JobStats]:
    """Look at the job's figures whenever something happens."""
    seen = []
    while not job.is_finished:
        job.wake.wait(0.5)
        job.wake.clear()
        stats = host.hypervisor.find_migration_job(job.instance_id)
        if stats is not None:
            seen.append(stats)
    return seen


@pytest.mark.parametrize("is_block", [True, False], ids=["block", "shared"])
def test_a_guest_arrives_paused_and_is_resumed(
    src: Host, dst: Host, make_guest: MakeGuest, is_block: bool
) -> None:
    guest = started(src, make_guest(linux=is_block, epoch=4))
    if is_block:
        wait_until(lambda: bool(guest.tail()), what="the guest's kernel runs")
    wanted = request(src, dst, guest, is_block=is_block)
    with dst.hypervisor.watch(guest.id) as arrival:
        began_s = time.monotonic()
        job = src.hypervisor.migrate(guest.id, wanted)
        follow(job, src)
        elapsed_s = time.monotonic() - began_s
        assert job.wait(0)
        assert job.error is None
        assert arrival.wait_for(lambda event: event.kind == "started", PATIENCE_S)

    assert src.hypervisor.find_domain(guest.id) is None
    view = dst.hypervisor.get_domain(guest.id)
    assert (view.state, view.reason) == (STATE_PAUSED, PAUSED_USER)
    assert (view.is_persistent, view.epoch, view.has_job) == (True, 5, False)
    inactive = dst.hypervisor.dump_xml(guest.id, inactive=True)
    assert parse_metadata(inactive) == parse_metadata(wanted.dst_xml)
    assert f"{guest.console}.dst" in inactive
    assert (f"{guest.id}-dst.qcow2" in inactive) is is_block
    began_s = time.monotonic()
    dst.hypervisor.ensure_resumed(guest.id)
    print(f"{elapsed_s * 1000:.0f} ms, resume {(time.monotonic() - began_s) * 1000:.1f} ms")
    assert dst.hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING

    told, kept = job.completed_stats, dst.hypervisor.get_completed_stats(guest.id)
    assert told is not None
    assert kept is not None
    assert told.kind == kept.kind == "completed"
    assert told.downtime_ms is not None
    assert told.total_ms is not None
    assert 0 < told.total_ms / 1000 <= elapsed_s
    assert dst.hypervisor.get_completed_stats(guest.id) == kept


def test_direct_arrival_runs_at_once(src: Host, dst: Host, make_guest: MakeGuest) -> None:
    guest = started(src, make_guest())
    job = src.hypervisor.migrate(
        guest.id, request(src, dst, guest, is_block=True, is_paused_arrival=False)
    )
    assert job.wait(PATIENCE_S)
    assert job.error is None
    view = dst.hypervisor.get_domain(guest.id)
    assert (view.state, view.reason) == (STATE_RUNNING, RUNNING_MIGRATED)


def slow(src: Host, dst: Host, make_guest: MakeGuest) -> tuple[Guest, MigrationJob]:
    """Begin a migration that takes long enough to interfere with it."""
    guest = started(src, make_guest(linux=True))
    # Before its kernel is unpacked there is hardly anything to copy.
    wait_until(lambda: bool(guest.tail()), what="the guest's kernel runs")
    wanted = request(src, dst, guest, is_block=True, bandwidth_mib_s=1)
    job = src.hypervisor.migrate(guest.id, wanted)
    end_s = time.monotonic() + PATIENCE_S
    # Earlier changes of the bandwidth would be overwritten by the job's own.
    while True:
        stats = src.hypervisor.find_migration_job(guest.id)
        if stats is not None and stats.phase == "memory":
            return guest, job
        assert time.monotonic() < end_s
        assert not job.is_finished, job.error
        time.sleep(0.01)


def wait_until_gone(host: Host, instance_id: UUID) -> None:
    wait_until(
        lambda: host.hypervisor.find_domain(instance_id) is None,
        what=f"no domain is left on {host.hypervisor.name}",
    )


def revive_libvirtd(lab: Lab, host: Host) -> None:
    name = host.hypervisor.name
    wait_until(lambda: not host.hypervisor.is_connected, what=f"the loss of {name} is noticed")
    lab.start(f"libvirtd:{name}")
    assert host.hypervisor.wait_connected(PATIENCE_S)


def test_an_abort_leaves_the_guest_on_its_source(
    src: Host, dst: Host, make_guest: MakeGuest
) -> None:
    guest, job = slow(src, dst, make_guest)
    assert src.hypervisor.get_domain(guest.id).has_job
    incoming = dst.hypervisor.get_domain(guest.id)
    assert incoming.has_job
    assert (incoming.state, incoming.reason, incoming.epoch) == (STATE_PAUSED, PAUSED_MIGRATION, 2)
    assert dst.hypervisor.find_migration_job(guest.id) is None
    src.hypervisor.set_max_downtime(guest.id, 200)
    src.hypervisor.set_bandwidth(guest.id, 2)
    src.hypervisor.abort_job(guest.id)
    assert job.wait(PATIENCE_S)
    assert isinstance(job.error, MigrationAborted)
    assert job.error.effect is Effect.UNKNOWN
    assert src.hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING
    assert src.hypervisor.find_migration_job(guest.id) is None
    assert dst.hypervisor.find_domain(guest.id) is None
    src.hypervisor.abort_job(guest.id)


def test_a_migration_goes_on_without_the_one_who_called(
    src: Host, dst: Host, make_guest: MakeGuest
) -> None:
    guest, job = slow(src, dst, make_guest)
    job.abandon()
    assert job.wait(PATIENCE_S)
    assert isinstance(job.error, OutcomeUnknown)
    # Another worker finds the job, speeds it up and waits for its end by events.
    assert src.hypervisor.find_migration_job(guest.id) is not None
    with src.hypervisor.watch(guest.id) as watch:
        src.hypervisor.set_bandwidth(guest.id, 1000)
        done = watch.wait_for(lambda event: event.kind == "job_completed", PATIENCE_S)
    assert done is not None
    wait_until_gone(src, guest.id)
    assert dst.hypervisor.get_domain(guest.id).reason == PAUSED_USER
    assert dst.hypervisor.get_completed_stats(guest.id) is not None


def test_a_destination_killed_on_the_way_is_an_unknown_outcome(
    src: Host, dst: Host, make_guest: MakeGuest, bare_lab: Lab
) -> None:
    guest, job = slow(src, dst, make_guest)
    bare_lab.kill("libvirtd:hv-b")
    assert job.wait(2 * PATIENCE_S)
    assert isinstance(job.error, OutcomeUnknown | MigrationError)
    assert job.error.effect is Effect.UNKNOWN
    assert src.hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING
    revive_libvirtd(bare_lab, dst)
    # What had arrived of it is ended by the new daemon once it has looked around.
    wait_until_gone(dst, guest.id)


def test_a_killed_source_daemon_keeps_the_guest(
    src: Host, dst: Host, make_guest: MakeGuest, bare_lab: Lab
) -> None:
    guest, job = slow(src, dst, make_guest)
    bare_lab.kill("libvirtd:hv-a")
    assert job.wait(PATIENCE_S)
    assert isinstance(job.error, OutcomeUnknown)
    with pytest.raises(HypervisorUnavailable):
        src.hypervisor.find_domain(guest.id)
    revive_libvirtd(bare_lab, src)
    assert src.hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING


def test_refusals_are_errors_of_the_job(src: Host, dst: Host, make_guest: MakeGuest) -> None:
    guest = started(src, make_guest())
    refused = request(src, dst, guest, is_block=False, is_unsafe=False)
    job = src.hypervisor.migrate(guest.id, refused)
    assert job.wait(PATIENCE_S)
    assert type(job.error) is MigrationError
    assert "unsafe" in job.error.message
    assert job.error.details["libvirt_code"] == 81

    job = src.hypervisor.migrate(uuid4(), refused)
    assert job.wait(PATIENCE_S)
    assert isinstance(job.error, DomainNotFound)
    assert src.hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING


def test_control_calls_are_quick_while_a_migration_runs(
    src: Host, dst: Host, make_guest: MakeGuest
) -> None:
    guest, job = slow(src, dst, make_guest)
    other = make_guest()

    def look_around() -> float:
        began_s = time.monotonic()
        for _ in range(20):
            src.hypervisor.list_domains()
            src.hypervisor.find_domain(guest.id)
            src.hypervisor.find_migration_job(guest.id)
        return time.monotonic() - began_s

    assert quickest(look_around, limit_s=1) < 1
    started(src, other)
    assert not job.is_finished
    src.hypervisor.abort_job(guest.id)
    assert job.wait(PATIENCE_S)


def test_a_lost_reply_does_not_run_the_guest_twice_when_it_arrives_paused(
    src: Host, dst: Host, make_guest: MakeGuest, bare_lab: Lab
) -> None:
    guest, job = slow(src, dst, make_guest)
    # What libvirt itself answers with two running guests: the last reply does not come through.
    bare_lab.cut("hv-b", "hv-a", one_way=True, port=16509)
    try:
        src.hypervisor.set_bandwidth(guest.id, 1000)
        assert job.wait(2 * PATIENCE_S)
    finally:
        bare_lab.heal()
    assert isinstance(job.error, OutcomeUnknown)
    here, there = src.hypervisor.get_domain(guest.id), dst.hypervisor.get_domain(guest.id)
    assert (here.state, here.reason) == (STATE_RUNNING, RUNNING_MIGRATION_CANCELED)
    assert (there.state, there.reason) == (STATE_PAUSED, PAUSED_USER)
    assert (here.epoch, there.epoch) == (1, 2)
