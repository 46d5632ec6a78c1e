"""What happens to calls and events when libvirtd dies, hangs, and comes back."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from innkeeper.errors import HypervisorUnavailable, InternalError
from innkeeper.states import Effect, PowerState
from lab.handle import Lab
from tests.virt.conftest import Host, MakeGuest, connect
from tests.waiting import PATIENCE_S, wait_until
from virt.connection import open_connection
from virt.hypervisor import Hypervisor

pytestmark = pytest.mark.lab

# With an interval of one second and two probes a hung libvirtd is dead after three seconds, and
# what has a limit here has one of a second; without either a call would take a minute.
HUNG_S = 15

OUTAGES = int(os.environ.get("INNKEEPER_TEST_OUTAGES", "3"))


@pytest.fixture
def host(bare_lab: Lab) -> Iterator[Host]:
    """A host whose libvirtd may be maltreated."""
    bare_lab.start("libvirtd:hv-b")
    host = connect(bare_lab, "hv-b", keepalive_interval_s=1, keepalive_count=2)
    yield host
    host.hypervisor.close()
    bare_lab.start("libvirtd:hv-b")


@pytest.fixture
def hung(bare_lab: Lab) -> Iterator[Callable[[], None]]:
    """Stop libvirtd as a debugger would: it accepts and never answers."""
    pid = bare_lab.start("libvirtd:hv-b")["pid"]
    yield lambda: os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


def restart_libvirtd(lab: Lab, host: Host) -> None:
    lab.kill("libvirtd:hv-b")
    wait_until(lambda: not host.hypervisor.is_connected, what="the loss is noticed")
    lab.start("libvirtd:hv-b")
    assert host.hypervisor.wait_connected(PATIENCE_S)


def test_a_killed_libvirtd_is_noticed_and_found_again(
    host: Host, bare_lab: Lab, make_guest: MakeGuest
) -> None:
    hypervisor, guest = host.hypervisor, make_guest()
    hypervisor.define(guest.xml)
    hypervisor.ensure_started(guest.id)
    with hypervisor.watch(guest.id) as watch:
        bare_lab.kill("libvirtd:hv-b")
        wait_until(lambda: bool(host.lost), what="the loss is told")
        assert not hypervisor.is_connected
        with pytest.raises(HypervisorUnavailable) as lost:
            hypervisor.find_domain(guest.id)
        assert lost.value.effect is Effect.NOT_STARTED
        bare_lab.start("libvirtd:hv-b")
        assert hypervisor.wait_connected(PATIENCE_S)
        assert watch.wait_for(lambda event: event.kind == "connection_restored", PATIENCE_S)
        # The guest went on meanwhile, and its events come again.
        assert hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING
        hypervisor.ensure_destroyed(guest.id)
        assert watch.wait_for(lambda event: event.kind == "stopped", PATIENCE_S)
    assert len(host.lost) == 1
    assert len(host.connected) == 2


def test_the_snapshot_is_taken_before_watchers_are_told(bare_lab: Lab) -> None:
    bare_lab.start("libvirtd:hv-a")
    order: list[str] = []
    hypervisor = Hypervisor(
        bare_lab.libvirt_uri("hv-a"),
        name="hv-a",
        on_connected=lambda: order.append(f"{len(hypervisor.list_domains()) >= 0}"),
    )
    try:
        with hypervisor.watch(uuid4()) as watch:
            hypervisor.start()
            assert watch.wait(PATIENCE_S) is not None
            order.append("told")
    finally:
        hypervisor.close()
    assert order == ["True", "told"]


def test_a_hung_libvirtd_ends_calls_by_keepalive(host: Host, hung: Callable[[], None]) -> None:
    hung()
    began_s = time.monotonic()
    with pytest.raises(HypervisorUnavailable) as lost:
        host.hypervisor.find_domain(uuid4())
    assert 1 < time.monotonic() - began_s < HUNG_S
    assert lost.value.effect is Effect.UNKNOWN
    wait_until(lambda: bool(host.lost), what="the loss is told")


def test_a_hung_libvirtd_does_not_hang_open(bare_lab: Lab, hung: Callable[[], None]) -> None:
    hung()
    began_s = time.monotonic()
    with pytest.raises(HypervisorUnavailable):
        open_connection(
            bare_lab.libvirt_uri("hv-b"),
            host="hv-b",
            keepalive_interval_s=60,
            keepalive_count=5,
            limit_s=1,
        )
    assert time.monotonic() - began_s < HUNG_S


def test_a_call_beyond_its_limit_is_cut(bare_lab: Lab, hung: Callable[[], None]) -> None:
    faults: list[str] = []
    connection = open_connection(
        bare_lab.libvirt_uri("hv-b"),
        host="hv-b",
        keepalive_interval_s=60,
        keepalive_count=5,
        on_fault=faults.append,
    )
    assert connection.call("ask", lambda conn: conn.getLibVersion()) > 0
    hung()
    began_s = time.monotonic()
    with pytest.raises(HypervisorUnavailable):
        connection.call("ask", lambda conn: conn.getLibVersion(), limit_s=1)
    assert 0.9 < time.monotonic() - began_s < HUNG_S
    assert faults
    connection.close()


def test_closing_is_bounded_even_when_libvirtd_hangs(
    bare_lab: Lab, hung: Callable[[], None]
) -> None:
    host = connect(bare_lab, "hv-b")
    hung()
    began_s = time.monotonic()
    host.hypervisor.close()
    assert time.monotonic() - began_s < HUNG_S
    with pytest.raises(HypervisorUnavailable):
        host.hypervisor.list_domains()


def test_a_worker_may_start_before_libvirtd(bare_lab: Lab) -> None:
    bare_lab.start("libvirtd:hv-b")
    bare_lab.kill("libvirtd:hv-b")
    hypervisor = Hypervisor(bare_lab.libvirt_uri("hv-b"), name="hv-b")
    hypervisor.start()
    try:
        assert not hypervisor.wait_connected(0.5)
        with pytest.raises(HypervisorUnavailable):
            hypervisor.get_facts()
        bare_lab.start("libvirtd:hv-b")
        assert hypervisor.wait_connected(PATIENCE_S)
        assert hypervisor.get_facts().hostname == "hv-b"
    finally:
        hypervisor.close()


def test_many_threads_share_a_connection(src: Host) -> None:
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(20):
                src.hypervisor.list_domains()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not failed


def test_nothing_of_it_is_used_after_a_fork(src: Host) -> None:
    assert src.hypervisor.is_connected
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            Hypervisor("qemu:///system", name="child").start()
        except InternalError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    src.hypervisor.list_domains()


def test_file_descriptors_and_threads_do_not_pile_up(bare_lab: Lab) -> None:
    bare_lab.start("libvirtd:hv-a")
    connect(bare_lab, "hv-a").hypervisor.close()
    time.sleep(0.3)
    descriptors, threads = open_descriptors(), threading.active_count()
    for _ in range(10):
        connect(bare_lab, "hv-a").hypervisor.close()
    # The last ones end a moment after close has returned.
    wait_until(lambda: open_descriptors() <= descriptors + 1, what="descriptors are closed")
    wait_until(lambda: threading.active_count() <= threads, what="threads end")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_outages_leave_no_file_descriptors(
    bare_lab: Lab, make_guest: MakeGuest, host: Host
) -> None:
    before = 0
    for number in range(4):
        restart_libvirtd(bare_lab, host)
        if number == 0:
            before = open_descriptors()
    wait_until(lambda: open_descriptors() <= before + 2, what="descriptors are closed")


def test_calls_under_way_survive_outages(bare_lab: Lab, host: Host, make_guest: MakeGuest) -> None:
    guest = make_guest()
    host.hypervisor.define(guest.xml)
    wrong: list[BaseException] = []
    good, lost = [0], [0]
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                host.hypervisor.find_domain(guest.id)
                host.hypervisor.list_domains()
                host.hypervisor.dump_xml(guest.id)
                good[0] += 1
            except HypervisorUnavailable:
                lost[0] += 1
                time.sleep(0.001)
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(OUTAGES):
            wait_until(lambda before=good[0]: good[0] > before or wrong, what="a call is answered")
            time.sleep(0.3)
            restart_libvirtd(bare_lab, host)
    finally:
        is_over.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not wrong
    assert good[0]
    assert lost[0]
