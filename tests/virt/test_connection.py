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
from virt.connection import open_connection
from virt.hypervisor import Hypervisor

pytestmark = pytest.mark.lab

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
    pid = bare_lab.role("libvirtd:hv-b")["pid"]
    yield lambda: os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


def until(condition: Callable[[], bool], timeout_s: float) -> float:
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - began_s


def test_a_killed_libvirtd_is_noticed_and_found_again(
    host: Host, bare_lab: Lab, make_guest: MakeGuest
) -> None:
    hypervisor, guest = host.hypervisor, make_guest()
    hypervisor.define(guest.xml)
    hypervisor.ensure_started(guest.id)
    with hypervisor.watch(guest.id) as watch:
        bare_lab.kill("libvirtd:hv-b")
        until(lambda: bool(host.lost), 2)
        assert not hypervisor.is_connected
        with pytest.raises(HypervisorUnavailable) as lost:
            hypervisor.find_domain(guest.id)
        assert lost.value.effect is Effect.NOT_STARTED
        bare_lab.start("libvirtd:hv-b")
        assert hypervisor.wait_connected(10)
        assert watch.wait_for(lambda event: event.kind == "connection_restored", 2)
        # The guest went on meanwhile, and its events come again.
        assert hypervisor.get_domain(guest.id).power_state is PowerState.RUNNING
        hypervisor.ensure_destroyed(guest.id)
        assert watch.wait_for(lambda event: event.kind == "stopped", 1)
    assert len(host.lost) == 1
    assert len(host.connected) == 2


def test_the_snapshot_is_taken_before_watchers_are_told(bare_lab: Lab) -> None:
    order: list[str] = []
    hypervisor = Hypervisor(
        bare_lab.libvirt_uri("hv-a"),
        name="hv-a",
        on_connected=lambda: order.append(f"{len(hypervisor.list_domains()) >= 0}"),
    )
    with hypervisor.watch(uuid4()) as watch:
        hypervisor.start()
        assert watch.wait(10) is not None
        order.append("told")
    hypervisor.close()
    assert order == ["True", "told"]


def test_a_hung_libvirtd_ends_calls_by_keepalive(host: Host, hung: Callable[[], None]) -> None:
    hung()
    began_s = time.monotonic()
    with pytest.raises(HypervisorUnavailable) as lost:
        host.hypervisor.find_domain(uuid4())
    assert 1 < time.monotonic() - began_s < 6
    assert lost.value.effect is Effect.UNKNOWN
    until(lambda: bool(host.lost), 2)


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
    assert time.monotonic() - began_s < 3


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
    assert 0.9 < time.monotonic() - began_s < 3
    assert faults
    connection.close()


def test_closing_is_bounded_even_when_libvirtd_hangs(
    bare_lab: Lab, hung: Callable[[], None]
) -> None:
    host = connect(bare_lab, "hv-b")
    hung()
    began_s = time.monotonic()
    host.hypervisor.close()
    assert time.monotonic() - began_s < 3
    with pytest.raises(HypervisorUnavailable):
        host.hypervisor.list_domains()


def test_a_worker_may_start_before_libvirtd(bare_lab: Lab) -> None:
    bare_lab.kill("libvirtd:hv-b")
    hypervisor = Hypervisor(bare_lab.libvirt_uri("hv-b"), name="hv-b")
    hypervisor.start()
    assert not hypervisor.wait_connected(0.5)
    with pytest.raises(HypervisorUnavailable):
        hypervisor.get_facts()
    bare_lab.start("libvirtd:hv-b")
    assert hypervisor.wait_connected(5)
    assert hypervisor.get_facts().hostname == "hv-b"
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
        thread.join(30)
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
    connect(bare_lab, "hv-a").hypervisor.close()
    time.sleep(0.3)
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    for _ in range(10):
        connect(bare_lab, "hv-a").hypervisor.close()
    time.sleep(0.3)
    after = (len(os.listdir("/proc/self/fd")), threading.active_count())
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1]


def test_outages_leave_no_file_descriptors(
    bare_lab: Lab, make_guest: MakeGuest, host: Host
) -> None:
    before = 0
    for number in range(4):
        bare_lab.kill("libvirtd:hv-b")
        until(lambda: not host.hypervisor.is_connected, 2)
        bare_lab.start("libvirtd:hv-b")
        assert host.hypervisor.wait_connected(10)
        if number == 0:
            before = len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


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
            time.sleep(0.3)
            bare_lab.kill("libvirtd:hv-b")
            until(lambda: not host.hypervisor.is_connected, 5)
            bare_lab.start("libvirtd:hv-b")
            assert host.hypervisor.wait_connected(10)
    finally:
        is_over.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong
    assert good[0]
    assert lost[0]
