"""Libvirt's numbers in our words."""

from uuid import UUID, uuid4

import pytest

from innkeeper.states import PowerState
from virt.capabilities import read_facts, version_text
from virt.events import agent_event, iteration_event, job_event, lifecycle_event
from virt.views import job_stats, power_state

ID = uuid4()


@pytest.mark.parametrize(
    ("event", "detail", "kind", "word", "power"),
    [
        (0, 0, "defined", "added", None),
        (1, 0, "undefined", "removed", None),
        (2, 0, "started", "booted", PowerState.RUNNING),
        (2, 1, "started", "migrated", None),
        (3, 0, "suspended", "paused", PowerState.PAUSED),
        (3, 1, "suspended", "migrated", None),
        (4, 1, "resumed", "migrated", PowerState.RUNNING),
        (5, 0, "stopped", "shutdown", PowerState.SHUTDOWN),
        (5, 1, "stopped", "destroyed", PowerState.SHUTDOWN),
        (5, 2, "stopped", "crashed", PowerState.CRASHED),
        (5, 3, "stopped", "migrated", None),
        (5, 4, "stopped", "saved", PowerState.SHUTDOWN),
        (5, 5, "stopped", "failed", PowerState.CRASHED),
        (6, 1, "shutdown", "by_guest", None),
        (7, 0, "pmsuspended", "memory", PowerState.SUSPENDED),
        (8, 0, "crashed", "panicked", PowerState.CRASHED),
        (5, 99, "stopped", "detail_99", PowerState.SHUTDOWN),
    ],
)
def test_lifecycle(event: int, detail: int, kind: str, word: str, power: PowerState | None) -> None:
    told = lifecycle_event(ID, event, detail, name="web-1")
    assert told is not None
    assert (told.kind, told.detail, told.power_state) == (kind, word, power)
    assert (told.event_code, told.detail_code, told.name) == (event, detail, "web-1")
    assert told.is_end == (kind in ("stopped", "crashed"))
    assert told.at.tzinfo is not None


def test_events_of_a_later_libvirt_are_dropped() -> None:
    assert lifecycle_event(ID, 99, 0) is None


def test_other_events() -> None:
    assert agent_event(ID, 1, 2).kind == "agent_connected"
    assert agent_event(ID, 2, 9).detail == "reason_9"
    assert iteration_event(ID, 3).params == {"iteration": 3}
    assert (
        job_stats(job_event(ID, {"downtime": 18, "time_elapsed": 400}).params).kind == "completed"
    )


@pytest.mark.parametrize(
    ("state", "reason", "power"),
    [
        (0, 0, PowerState.NOSTATE),
        (1, 6, PowerState.RUNNING),
        (2, 0, PowerState.RUNNING),
        (3, 2, PowerState.PAUSED),
        (4, 1, PowerState.RUNNING),
        (5, 1, PowerState.SHUTDOWN),
        (5, 3, PowerState.CRASHED),
        (6, 1, PowerState.CRASHED),
        (7, 0, PowerState.SUSPENDED),
        (99, 0, PowerState.NOSTATE),
    ],
)
def test_power_state(state: int, reason: int, power: PowerState) -> None:
    assert power_state(state, reason) is power


def test_job_figures_have_units() -> None:
    running = job_stats(
        {
            "type": 2,
            "time_elapsed": 1500,
            "downtime": 300,
            "memory_total": 1000,
            "memory_remaining": 400,
            "memory_dirty_rate": 10,
            "memory_page_size": 4096,
            "memory_iteration": 3,
            "auto_converge_throttle": 40,
        }
    )
    assert (running.kind, running.phase, running.total_ms) == ("unbounded", "memory", None)
    assert running.memory_dirty_bytes_s == 40960
    assert running.throttle_percent == 40
    assert job_stats({"type": 2}).phase == "starting"
    assert job_stats({"type": 2, "disk_total": 1}).phase == "disks"
    assert job_stats({"type": 2, "memory_postcopy_requests": 1}).phase == "postcopy"
    done = job_stats({"time_elapsed": 600, "downtime": 20})
    assert (done.kind, done.phase, done.total_ms, done.downtime_ms) == (
        "completed",
        "done",
        600,
        20,
    )
    assert done.to_json()["total_ms"] == 600
    assert job_stats({"type": 77}).kind == "none"


CAPABILITIES = """
<capabilities><host><uuid>11111111-1111-4111-8111-00000000000a</uuid>
<cpu><arch>x86_64</arch><model>EPYC</model></cpu></host>
<guest><os_type>hvm</os_type><arch name='i686'><emulator>/bin/q32</emulator></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/bin/q64</emulator>
<machine canonical='pc-i440fx-7.2'>pc</machine><machine>pc-i440fx-7.2</machine>
<domain type='qemu'/><domain type='kvm'><machine canonical='pc-i440fx-6.0'>pc</machine></domain>
</arch></guest></capabilities>
"""


@pytest.mark.parametrize(("kind", "machine"), [("qemu", "pc-i440fx-7.2"), ("kvm", "pc-i440fx-6.0")])
def test_facts(kind: str, machine: str) -> None:
    facts = read_facts(
        CAPABILITIES,
        hostname="hv-a",
        libvirt_version=9000000,
        qemu_version=7002022,
        hypervisor="QEMU",
        node_info=["x86_64", 4096, 2],
        memory_kib=8 * 1024 * 1024,
        domain_type=kind,
    )
    assert facts.host_uuid == UUID("11111111-1111-4111-8111-00000000000a")
    assert (facts.emulator, facts.cpu_model) == ("/bin/q64", "EPYC")
    assert (facts.libvirt_version, facts.qemu_version) == ("9.0.0", "7.2.22")
    assert facts.domain_types == ("qemu", "kvm")
    assert facts.memory_mib == 8192
    assert facts.machine("pc") == machine
    assert version_text(12008000) == "12.8.0"
