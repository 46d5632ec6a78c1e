"""Power verbs, and records that follow what happens behind Innkeeper's back."""

import time
from typing import Any
from uuid import UUID

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import NotFound, StateConflict
from lab.handle import Lab
from tests.waiting import PATIENCE_S, quickest, wait_until
from tests.workflow.conftest import domains_on, guest_exec
from virt.hypervisor import Hypervisor

pytestmark = pytest.mark.lab


def test_a_guest_is_stopped_by_acpi_started_and_rebooted(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    host = client.spawn(name=name, **linux_guest).wait(120)["host"]
    stop = client.stop(name, grace_s=30)
    assert stop.wait(120)["state"] == "stopped"
    assert stop.view().steps[0].detail["how"] == "acpi"
    assert domains_on(lab, host)[name] == "shut off"
    with pytest.raises(StateConflict):
        client.reboot(name).wait(60)
    assert client.start(name).wait(120)["state"] == "active"
    assert domains_on(lab, host)[name] == "running"
    reboot = client.reboot(name, kind="hard")
    assert reboot.wait(120)["power_state"] == "running"
    assert domains_on(lab, host)[name] == "running"


def test_a_deaf_guest_is_forced_off_after_its_grace(
    client: Innkeeper, name: str, boot_guest: dict[str, Any]
) -> None:
    client.spawn(name=name, **boot_guest).wait(120)
    stop = client.stop(name, grace_s=1)
    assert stop.wait(120)["power_state"] == "shutdown"
    assert stop.view().steps[0].detail["how"] == "forced"


def test_power_off_inside_the_guest_is_seen_within_a_second_of_its_end(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any]
) -> None:
    instance = client.spawn(name=name, **linux_guest).wait(120)
    host = instance["host"]
    onlooker = Hypervisor(lab.libvirt_uri(host), name=host)
    onlooker.start()
    assert onlooker.wait_connected(PATIENCE_S)

    def power_off() -> float:
        """Return how long after the guest's end its record was written."""
        if domains_on(lab, host)[name] == "shut off":
            client.start(name).wait(120)
        wait_until(
            lambda: onlooker.agent_ping(UUID(instance["id"])),
            timeout_s=2 * PATIENCE_S,
            what="the guest is up",
        )
        with onlooker.watch(UUID(instance["id"])) as watch:
            # A moment later, or the guest may be gone before its agent has answered.
            later = "/bin/busybox sleep 1; /bin/busybox poweroff -f"
            guest_exec(lab, host, name, "/bin/busybox", "sh", "-c", later)
            ended = watch.wait_for(lambda event: event.is_end, PATIENCE_S)
        assert ended is not None
        wait_until(lambda: client.instance(name).state == "stopped", what="the record")
        return (client.instance(name).updated_at - ended.at).total_seconds()

    try:
        assert quickest(power_off, limit_s=1.0, tries=2) < 1.0
    finally:
        onlooker.close()


def test_a_guest_started_behind_our_back_is_put_down_after_a_second_look(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    host = client.spawn(name=name, **boot_guest).wait(120)["host"]
    client.stop(name, force=True).wait(120)
    lab.exec(host, ["virsh", "start", name])
    wait_until(
        lambda: client.instance(name).power_state == "running", what="the record says it runs"
    )
    wait_until(
        lambda: domains_on(lab, host)[name] == "shut off",
        timeout_s=2 * PATIENCE_S,
        what="the policy stops it at the second look",
    )


def test_an_event_missed_while_the_worker_was_dead_is_made_good_at_its_start(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    host = client.spawn(name=name, **boot_guest).wait(120)["host"]
    lab.kill(f"worker:{host}")
    lab.exec(host, ["virsh", "destroy", name])
    time.sleep(0.3)
    assert client.instance(name).state == "active"
    lab.start(f"worker:{host}")
    wait_until(lambda: client.instance(name).state == "stopped", what="the record")


def test_events_are_seen_again_after_libvirtd_was_killed(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    host = client.spawn(name=name, **boot_guest).wait(120)["host"]
    lab.kill(f"libvirtd:{host}")
    wait_until(
        lambda: not next(h for h in client.hosts() if h.name == host).is_enabled,
        what="the host disables itself",
    )
    lab.start(f"libvirtd:{host}")
    wait_until(
        lambda: next(h for h in client.hosts() if h.name == host).is_enabled,
        what="the host enables itself",
    )
    lab.exec(host, ["virsh", "destroy", name])
    wait_until(lambda: client.instance(name).state == "stopped", what="the record")


def test_an_operators_disable_survives_a_libvirtd_restart(client: Innkeeper, lab: Lab) -> None:
    host = lab.hosts[0]
    client.disable_host(host, reason="new disks")
    try:
        lab.kill(f"libvirtd:{host}")
        lab.start(f"libvirtd:{host}")
        time.sleep(3)
        view = next(h for h in client.hosts() if h.name == host)
        assert (view.is_enabled, view.disabled_reason) == (False, "new disks")
    finally:
        client.enable_host(host)


def test_an_unknown_guest_is_named(client: Innkeeper) -> None:
    with pytest.raises(NotFound, match="nobody"):
        client.stop("nobody").wait(60)
