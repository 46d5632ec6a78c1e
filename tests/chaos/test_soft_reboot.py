"""A soft reboot whose worker dies while the guest is off brings the guest up all the same."""

from typing import Any

import pytest

from innkeeper import Innkeeper
from lab.handle import Lab
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on

pytestmark = pytest.mark.lab


def test_the_worker_dies_between_off_and_on(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any], crash: CrashDirectory
) -> None:
    host = lab.hosts[0]
    client.spawn(name=name, host=host, **boot_guest).wait(60)
    point = "reboot.reboot_guest:inside"
    crash.arm_kill(point)
    operation = client.reboot(name, kind="soft", grace_s=1)
    assert crash.wait_struck(point)
    wait_until(lambda: not lab.role(f"worker:{host}")["running"], what="the worker is dead")
    assert domains_on(lab, host)[name] == "shut off"
    lab.start(f"worker:{host}")
    assert operation.wait(60)["power_state"] == "running"
    assert domains_on(lab, host)[name] == "running"
