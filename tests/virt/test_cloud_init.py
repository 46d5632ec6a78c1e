"""The top rung: cloud-init's end, told by the agent or by the console."""

import time
from typing import Any

import pytest

from innkeeper.errors import BootTimeout, CloudInitFailed
from innkeeper.states import BootStage
from tests.virt.conftest import Guest, Host, MakeGuest
from tests.waiting import PATIENCE_S, wait_until
from virt.boot import wait_for_boot
from virt.console import tail

pytestmark = pytest.mark.lab

FINAL = (
    "[   25.123456] cloud-init[712]: Cloud-init v. 23.4.4-0ubuntu0~22.04.1 finished at Tue, 30 Apr"
    " 2024 12:00:00 +0000. Datasource DataSourceConfigDrive [net,ver=2][source=/dev/vdb]. "
    " Up 25.00 seconds"
)


@pytest.fixture
def linux(src: Host, make_guest: MakeGuest) -> Guest:
    """A Linux whose agent answers."""
    guest = make_guest(linux=True)
    src.hypervisor.define(guest.xml)
    src.hypervisor.ensure_started(guest.id)
    climb(src, guest, BootStage.AGENT, timeout_s=2 * PATIENCE_S)
    # The console reaches its file by way of another daemon, the agent's answer does not.
    wait_until(lambda: bool(tail(guest.console)), what="the console's first lines")
    return guest


def climb(
    host: Host, guest: Guest, wanted: BootStage = BootStage.CLOUD_INIT, **arguments: Any
) -> BootStage:
    return wait_for_boot(
        host.hypervisor,
        guest.id,
        wanted=wanted,
        console_path=guest.console,
        **{"timeout_s": PATIENCE_S, **arguments},
    )


def run_in(host: Host, guest: Guest, script: str) -> None:
    """Run a script in the guest and wait for its end."""
    call = {"path": "/bin/sh", "arg": ["-c", script]}
    answer = host.hypervisor.agent_command(guest.id, {"execute": "guest-exec", "arguments": call})
    pid = answer["return"]["pid"]
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        ask = {"execute": "guest-exec-status", "arguments": {"pid": pid}}
        if host.hypervisor.agent_command(guest.id, ask)["return"]["exited"]:
            return
    pytest.fail("the script in the guest did not end")


def replace_cloud_init(host: Host, guest: Guest, body: str) -> None:
    run_in(host, guest, f"cat > /bin/cloud-init <<'END'\n#!/bin/sh\n{body}\nEND\n")


def test_the_agent_tells_that_it_is_done(src: Host, make_guest: MakeGuest) -> None:
    guest = make_guest(linux=True)
    src.hypervisor.define(guest.xml)
    src.hypervisor.ensure_started(guest.id)
    stages: list[BootStage] = []
    reached = climb(src, guest, timeout_s=2 * PATIENCE_S, on_stage=stages.append)
    assert reached is BootStage.CLOUD_INIT
    assert stages[-2:] == [BootStage.AGENT, BootStage.CLOUD_INIT]


def test_its_failure_is_told_with_its_errors(src: Host, linux: Guest) -> None:
    report = (
        '{"status": "error", "errors": ["part one \\u001b[31mfailed", "part two failed"],'
        ' "detail": "x"}'
    )
    replace_cloud_init(src, linux, f"echo '....{report}'; exit 1")
    with pytest.raises(CloudInitFailed) as failed:
        climb(src, linux)
    assert failed.value.details["status"] == "error"
    assert failed.value.details["errors"] == ["part one failed", "part two failed"]
    assert "part two failed" in failed.value.message
    assert failed.value.details["console_tail"]


def test_one_that_is_disabled_is_not_waited_for(src: Host, linux: Guest) -> None:
    replace_cloud_init(src, linux, 'echo \'{"status": "disabled", "errors": []}\'')
    with pytest.raises(CloudInitFailed, match="never run"):
        climb(src, linux)


def test_an_old_one_without_json(src: Host, linux: Guest) -> None:
    replace_cloud_init(
        src,
        linux,
        'case "$*" in *json*) echo "unrecognized arguments: --format" >&2; exit 2;; esac\n'
        'echo "status: error"; echo "detail:"; echo "(\'part-001\', it broke)"',
    )
    with pytest.raises(CloudInitFailed):
        climb(src, linux)


def test_one_that_takes_its_time_is_waited_for(src: Host, linux: Guest) -> None:
    replace_cloud_init(src, linux, 'sleep 3; echo \'{"status": "done", "errors": []}\'')
    began_s = time.monotonic()
    assert climb(src, linux) is BootStage.CLOUD_INIT
    assert time.monotonic() - began_s > 2


def test_the_console_tells_where_the_agent_may_run_nothing(src: Host, linux: Guest) -> None:
    run_in(src, linux, f"rm /bin/cloud-init; echo '{FINAL}' > /dev/console")
    assert climb(src, linux) is BootStage.CLOUD_INIT


def test_the_words_in_the_middle_of_a_line_are_none(src: Host, linux: Guest) -> None:
    run_in(src, linux, f"rm /bin/cloud-init; echo 'user says: {FINAL}' > /dev/console")
    with pytest.raises(BootTimeout) as late:
        climb(src, linux, timeout_s=3)
    assert late.value.details["reached"] == "agent"
    assert "obstacle" in late.value.details


def test_what_stood_there_before_this_boot_does_not_count(src: Host, linux: Guest) -> None:
    run_in(src, linux, f"rm /bin/cloud-init; echo '{FINAL}' > /dev/console; sync")
    offset = linux.console.stat().st_size
    with pytest.raises(BootTimeout):
        climb(src, linux, timeout_s=3, console_offset=offset)
