"""Watches, the watchdog and the per-guest lock."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from innkeeper.errors import Busy, Cancelled
from tests.waiting import PATIENCE_S, wait_until
from virt.events import GuestEvent, lifecycle_event, restored_event
from virt.guest_lock import guest_lock
from virt.watch import EventHub
from virt.watchdog import Watchdog

ID = uuid4()


def event(kind: int = 2) -> GuestEvent:
    told = lifecycle_event(ID, kind, 0)
    assert told is not None
    return told


def test_a_watch_gets_its_guests_events_only() -> None:
    hub = EventHub("hv-a", None)
    with hub.watch(ID) as mine, hub.watch(uuid4()) as other:
        hub.publish(event())
        assert mine.wait(0) is not None
        assert mine.wait(0) is None
        assert other.wait(0.01) is None
        hub.publish(restored_event())
        assert mine.wait(0.1) is not None
        assert other.wait(0.1) is not None
    hub.publish(event())
    assert mine.wait(0.01) is None


def test_a_watch_wakes_a_flag_and_skips_the_unwanted() -> None:
    hub, wake = EventHub("hv-a", None), threading.Event()
    watch = hub.watch(ID, wake)
    for kind in (0, 2, 5):
        hub.publish(event(kind))
    assert wake.is_set()
    found = watch.wait_for(lambda told: told.is_end, 1)
    assert found is not None
    assert found.kind == "stopped"
    assert watch.wait_for(lambda told: told.is_end, 0.02) is None


def test_a_slow_or_failing_listener_delays_nobody() -> None:
    told: list[GuestEvent] = []
    may_go_on = threading.Event()

    def listen(one: GuestEvent) -> None:
        assert may_go_on.wait(PATIENCE_S)
        told.append(one)
        raise RuntimeError("a defect in the listener")

    hub = EventHub("hv-a", listen)
    with hub.watch(ID) as watch:
        for _ in range(3):
            hub.publish(event())
        hub.publish(restored_event())
        assert told == [], "publishing waited for the listener"
        assert all(watch.wait(0) is not None for _ in range(4))
    may_go_on.set()
    wait_until(lambda: len(told) == 3, what="the listener is told all")
    hub.close()


def test_the_watchdog_bites_only_late_calls() -> None:
    dog, bitten = Watchdog(), []
    with dog.limit(PATIENCE_S, "quick", lambda: bitten.append("quick")):
        pass
    with (
        dog.limit(PATIENCE_S, "long limit", lambda: bitten.append("long limit")),
        dog.limit(0.05, "late", lambda: bitten.append("late")),
    ):
        wait_until(lambda: bool(bitten), timeout_s=PATIENCE_S / 2, what="it bites")
    assert bitten == ["late"]

    def fail() -> None:
        bitten.append("failing")
        raise RuntimeError("a defect in the action")

    with dog.limit(0.01, "failing", fail):
        wait_until(lambda: "failing" in bitten, what="it bites")
    with dog.limit(0.01, "after a failure", lambda: bitten.append("after")):
        wait_until(lambda: "after" in bitten, what="it bites again")
    assert bitten == ["late", "failing", "after"]


def test_the_lock_excludes_threads(tmp_path: Path) -> None:
    with guest_lock(tmp_path / "locks", ID, timeout_s=1):
        with guest_lock(tmp_path / "locks", uuid4(), timeout_s=0):
            pass
        with (
            pytest.raises(Busy) as busy,
            guest_lock(tmp_path / "locks", ID, timeout_s=0.05),
        ):
            pass
    assert busy.value.details["instance_id"] == str(ID)
    with guest_lock(tmp_path / "locks", ID, timeout_s=0):
        pass


def test_waiting_for_the_lock_can_be_stopped(tmp_path: Path) -> None:
    def check() -> None:
        raise Cancelled("Somebody cancelled.")

    with (
        guest_lock(tmp_path, ID, timeout_s=1),
        pytest.raises(Cancelled),
        guest_lock(tmp_path, ID, timeout_s=60, check=check),
    ):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from uuid import UUID
from virt.guest_lock import guest_lock
with guest_lock(Path(sys.argv[1]), UUID(sys.argv[2]), timeout_s=1):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), str(ID)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(Busy), guest_lock(tmp_path, ID, timeout_s=0.05):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with guest_lock(tmp_path, ID, timeout_s=PATIENCE_S):
        pass
    process.stdout.close()
