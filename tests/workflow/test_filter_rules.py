"""A guest whose filter is bound and whose rules are late: nothing of it is heard unfiltered."""

from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import PrecheckFailed
from lab.handle import Lab
from tests.waiting import PATIENCE_S, wait_until
from tests.wire import sources_counted
from tests.workflow.conftest import domains_on
from tests.workflow.guest_inside import run_inside
from tests.workflow.guest_shell import is_agent_up
from tests.workflow.late_rules import rules_held
from tests.workflow.test_network_start import bindings_on, port_of

pytestmark = pytest.mark.lab

MAC, STRANGER = "52:54:00:12:07:04", "52:54:00:66:66:66"
# From its first second on it claims to be another, and never stops.
SPOOFER = f"""#!/bin/sh
ip link set eth0 down
ip link set eth0 address {STRANGER}
ip link set eth0 up
ip addr add 169.254.66.66/16 dev eth0
(i=0; while :; do i=$(((i + 1) % 250)); ping -c 1 -W 1 169.254.66.$i; done) >/dev/null 2>&1 &
"""


@pytest.fixture
def spoofer(linux_guest: dict[str, Any], lab: Lab) -> dict[str, Any]:
    return {
        **linux_guest,
        "network_cards": [{"bridge": "br0", "mac": MAC}],
        "data": {"drive": "config-2", "user_data": SPOOFER},
        "host": lab.hosts[0],
    }


def test_a_guest_runs_only_once_its_rules_are_made(
    client: Innkeeper, lab: Lab, name: str, spoofer: dict[str, Any]
) -> None:
    """Bound is not enough: libvirt makes the rules of an address it has to learn in a thread."""
    host = spoofer["host"]
    wire = lab.description.switch_pid, f"{host}-guest"
    with sources_counted(*wire) as heard:
        for ask in (
            lambda: client.spawn(name=name, **spoofer),
            lambda: client.reboot(name, kind="hard"),
        ):
            with rules_held(lab, host) as release:
                operation = ask()
                views = operation.watch(PATIENCE_S)
                next(view for view in views if "are not made yet" in view.progress.text)
                port, _ = port_of(lab, host, name)
                assert port in bindings_on(lab, host)
                assert domains_on(lab, host)[name] == "paused"
                release()
                operation.wait(120)
            assert domains_on(lab, host)[name] == "running"
            wait_until(lambda: has_spoofed(lab, host, name), what="the guest claims to be another")
    assert STRANGER not in heard
    # What would have been heard: the same frames, without the rules.
    lab.exec(host, ["virsh", "nwfilter-binding-delete", port])
    with sources_counted(*wire) as heard:
        already = count_sent(lab, host, name)
        wait_until(lambda: count_sent(lab, host, name) > already + 2, what="it goes on")
    assert heard.get(STRANGER, 0) > 0


def has_spoofed(lab: Lab, host: str, name: str) -> bool:
    if not is_agent_up(lab, host, name):
        return False
    told = run_inside(lab, host, name, "/bin/sh", "-c", "cat /sys/class/net/eth0/address")
    return told.strip() == STRANGER and count_sent(lab, host, name) > 3


def count_sent(lab: Lab, host: str, name: str) -> int:
    path = "/sys/class/net/eth0/statistics/tx_packets"
    return int(run_inside(lab, host, name, "/bin/sh", "-c", f"cat {path}"))


def test_a_guest_that_arrives_before_its_rules_waits_for_them(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> None:
    a, b = lab.hosts[:2]
    client.spawn(name=name, host=a, bridge="br0", pool="shared", **boot_guest).wait(120)
    with pytest.raises(PrecheckFailed, match="has to learn the address") as refused:
        client.migrate(name, dst=b, handover="fast").wait(120)
    assert [each["check"] for each in refused.value.details["failures"]] == ["handover"]
    with rules_held(lab, b) as release:
        operation = client.migrate(name, dst=b)
        wait_until(lambda: name not in domains_on(lab, a), what="the source lets it go")
        wait_until(
            lambda: operation.view().progress.step == "settle_destination", what="it has arrived"
        )
        assert domains_on(lab, b)[name] == "paused"
        release()
        assert operation.wait(120)["host"] == b
    port, _ = port_of(lab, b, name)
    assert domains_on(lab, b)[name] == "running"
    assert port in lab.exec(b, ["ebtables", "-t", "nat", "-L", "PREROUTING"]).stdout
    assert "state DOWN" not in lab.exec(b, ["ip", "-o", "link", "show", port]).stdout
