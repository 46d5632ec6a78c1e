"""Domains on a real libvirt: every verb twice, events, refusals, and a host with many."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from innkeeper.errors import (
    DefineRejected,
    DomainNotFound,
    HypervisorRefused,
    StartFailed,
    StartInterrupted,
)
from innkeeper.states import PowerState
from lab.errors import LabError
from lab.handle import Lab
from tests.virt.conftest import Host, MakeGuest
from tests.waiting import PATIENCE_S, quickest, wait_until
from virt.domain_xml import DiskSpec, parse_metadata, render_domain
from virt.errors import Meaning, meaning_of

pytestmark = pytest.mark.lab


def test_every_verb_twice(src: Host, make_guest: MakeGuest) -> None:
    host, guest = src.hypervisor, make_guest(epoch=7)
    assert host.find_domain(guest.id) is None

    for _ in range(2):
        host.define(guest.xml)
    view = host.get_domain(guest.id)
    assert (view.power_state, view.is_persistent, view.is_active) == (
        PowerState.SHUTDOWN,
        True,
        False,
    )
    assert (view.epoch, view.operation_id) == (7, guest.spec.operation_id)
    assert view.name == guest.spec.name

    for _ in range(2):
        host.ensure_started(guest.id, paused=True)
    assert host.get_domain(guest.id).power_state is PowerState.PAUSED
    for _ in range(2):
        host.ensure_resumed(guest.id)
    view = host.get_domain(guest.id)
    assert (view.power_state, view.has_job) == (PowerState.RUNNING, False)
    for _ in range(2):
        host.ensure_suspended(guest.id)
    assert host.get_domain(guest.id).power_state is PowerState.PAUSED
    host.ensure_resumed(guest.id)
    host.reset(guest.id)
    host.reboot(guest.id)
    host.shutdown(guest.id)

    for _ in range(2):
        host.ensure_destroyed(guest.id)
    assert host.get_domain(guest.id).power_state is PowerState.SHUTDOWN
    for _ in range(2):
        host.ensure_undefined(guest.id)
    assert host.find_domain(guest.id) is None
    host.ensure_destroyed(guest.id)


def test_an_event_arrives_at_once(src: Host, make_guest: MakeGuest) -> None:
    host = src.hypervisor

    def start_and_destroy() -> float:
        """Return how long after each call its event came, the longer of the two times."""
        guest = make_guest()
        host.define(guest.xml)
        with host.watch(guest.id) as watch:
            host.ensure_started(guest.id)
            was_started_s = time.monotonic()
            started = watch.wait_for(lambda event: event.kind == "started", PATIENCE_S)
            assert started is not None
            assert started.power_state is PowerState.RUNNING
            began_s = time.monotonic()
            host.ensure_destroyed(guest.id)
            stopped = watch.wait_for(lambda event: event.kind == "stopped", PATIENCE_S)
            assert stopped is not None
            assert (stopped.detail, stopped.power_state) == ("destroyed", PowerState.SHUTDOWN)
        assert watch.wait(0) is None
        # The listener is told in a thread of its own, so a moment later than the watch.
        wait_until(lambda: "stopped" in kinds_of(src, guest.id), what="the listener is told")
        kinds = [kind for kind in kinds_of(src, guest.id) if not kind.startswith("agent_")]
        assert (kinds[0], kinds[-1]) == ("defined", "stopped")
        # QEMU may or may not have the time to say that it was told to end.
        assert set(kinds) - {"shutdown"} == {"defined", "started", "resumed", "stopped"}
        return max(started.monotonic_s - was_started_s, stopped.monotonic_s - began_s)

    assert quickest(start_and_destroy, limit_s=1) < 1


def kinds_of(host: Host, instance_id: UUID) -> list[str]:
    return [event.kind for event in host.events if event.instance_id == instance_id]


def test_a_killed_qemu_is_told_as_crashed(src: Host, make_guest: MakeGuest, bare_lab: Lab) -> None:
    host, guest = src.hypervisor, make_guest()
    host.define(guest.xml)
    host.ensure_started(guest.id)
    with host.watch(guest.id) as watch:
        bare_lab.kill(f"qemu:hv-a:{guest.spec.name}")
        event = watch.wait_for(lambda event: event.is_end, PATIENCE_S)
    assert event is not None
    assert (event.detail, event.power_state) == ("failed", PowerState.CRASHED)
    assert host.get_domain(guest.id).power_state is PowerState.CRASHED


def test_a_qemu_that_is_killed_while_it_starts_may_be_started_again(
    bare_lab: Lab, src: Host, make_guest: MakeGuest
) -> None:
    host, guest = src.hypervisor, make_guest()
    host.define(guest.xml)

    def kill_as_soon_as_it_is_there(stop: threading.Event) -> None:
        while not stop.is_set():
            with suppress(LabError):
                bare_lab.kill(f"qemu:hv-a:{guest.spec.name}")

    def start_under_fire(tries: int) -> None:
        if tries == 0:
            return
        stop = threading.Event()
        killer = threading.Thread(target=kill_as_soon_as_it_is_there, args=(stop,))
        killer.start()
        try:
            host.ensure_started(guest.id)
        finally:
            stop.set()
            killer.join()
        # It was struck a moment too late.
        wait_until(lambda: not host.get_domain(guest.id).is_active, what="the killed guest is off")
        start_under_fire(tries - 1)

    with pytest.raises(StartInterrupted) as caught:
        start_under_fire(20)
    assert caught.value.retryable

    host.ensure_started(guest.id)
    assert host.get_domain(guest.id).power_state is PowerState.RUNNING


def test_what_libvirt_refuses_is_said_in_our_words(src: Host, make_guest: MakeGuest) -> None:
    host, guest = src.hypervisor, make_guest()
    with pytest.raises(DefineRejected) as rejected:
        host.define(guest.xml.replace("<features>", "<features><nonsense/>"))
    assert rejected.value.message.startswith("Libvirt on hv-a refused to define the domain: ")
    assert rejected.value.details["libvirt_code"] in (27, 92)

    gone = make_guest(disks=(DiskSpec(target="vda", path="/var/tmp/no-such-disk.qcow2"),))
    host.define(gone.xml)
    with pytest.raises(StartFailed, match="no-such-disk"):
        host.ensure_started(gone.id)

    with pytest.raises(DomainNotFound) as missing:
        host.ensure_started(uuid4())
    assert meaning_of(missing.value) is Meaning.GONE
    with pytest.raises(DomainNotFound):
        host.get_domain(uuid4())
    with pytest.raises(HypervisorRefused) as state:
        host.ensure_resumed(gone.id)
    assert meaning_of(state.value) is Meaning.STATE


def test_a_domain_of_someone_else_is_shown_without_epoch(src: Host, make_guest: MakeGuest) -> None:
    host, guest = src.hypervisor, make_guest()
    xml = guest.xml
    begin, end = xml.index("<metadata>"), xml.index("</metadata>") + len("</metadata>")
    host.define(xml[:begin] + xml[end:])
    view = next(view for view in host.list_domains() if view.instance_id == guest.id)
    assert (view.epoch, view.operation_id) == (None, None)
    assert host.get_domain(guest.id).epoch is None


def test_definition_keeps_our_metadata(src: Host, make_guest: MakeGuest) -> None:
    host, guest = src.hypervisor, make_guest(epoch=3)
    host.define(guest.xml)
    expected = (3, guest.spec.operation_id)
    assert parse_metadata(host.dump_xml(guest.id)) == expected
    assert parse_metadata(host.dump_xml(guest.id, inactive=True, migratable=True)) == expected


def test_facts(src: Host, dst: Host, make_guest: MakeGuest) -> None:
    facts, other = src.hypervisor.get_facts(), dst.hypervisor.get_facts()
    assert facts.hostname == "hv-a"
    assert facts.host_uuid != other.host_uuid
    assert facts.hypervisor == "QEMU"
    assert "qemu" in facts.domain_types
    assert facts.machine("pc").startswith("pc-i440fx-")
    assert facts.machine("pc-q35-7.1") == "pc-q35-7.1"
    assert facts.memory_mib > 512
    assert facts.vcpus >= 1
    guest = make_guest()
    src.hypervisor.define(guest.xml)
    src.hypervisor.ensure_started(guest.id)
    live = src.hypervisor.dump_xml(guest.id, migratable=True)
    assert dst.hypervisor.compare_cpu(live).is_compatible
    assert dst.hypervisor.compare_cpu(guest.xml).verdict == "not_asked"
    demanding = render_domain(make_guest(cpu="EPYC-Milan").spec)
    refused = dst.hypervisor.compare_cpu(demanding)
    assert not refused.is_compatible
    assert refused.detail


def cpu_time(pid: int) -> float:
    """Return the seconds a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_many_domains_are_listed_at_less_than_a_millisecond_each(
    dst: Host, make_guest: MakeGuest, bare_lab: Lab
) -> None:
    host, base = dst.hypervisor, make_guest()
    xml = base.xml
    ids = [uuid4() for _ in range(300)]
    try:
        for number, instance_id in enumerate(ids):
            host.define(
                xml.replace(str(base.id), str(instance_id)).replace(
                    base.spec.name, f"many-{number}"
                )
            )

        daemon = bare_lab.role("libvirtd:hv-b")["pid"]

        def list_all() -> float:
            """Return the processors' time, which does not grow with what else the machine does."""
            began_s = time.process_time() + cpu_time(daemon)
            views = host.list_domains()
            elapsed_s = time.process_time() + cpu_time(daemon) - began_s
            print(f"300 domains listed in {elapsed_s * 1000:.0f} ms")
            assert set(ids) <= {view.instance_id for view in views if view.epoch == 1}
            return elapsed_s

        assert quickest(list_all, limit_s=0.3) < 0.3
    finally:
        for instance_id in ids:
            host.ensure_undefined(instance_id)
