"""Every step of a spawn fails by an error, and nothing is left.

The crash matrix shows deaths, cancels and late messages at every boundary of every step. Here steps
fail: each in the middle of its effect, and those that the world can make fail, by the world.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError
from lab.handle import Lab
from models.session import Database
from tasks.spawn import SPAWN
from tests.chaos.checker.checker import Checker, format_violations
from tests.chaos.virsh import define_namesake, undefine_namesake, virsh
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.broken_host import CONSOLES_DIRECTORY, GUESTS_DIRECTORY, full_disk
from tests.workflow.conftest import assert_nothing_left

pytestmark = pytest.mark.lab

STEPS = tuple(step.name for step in SPAWN.steps)

# What a guest must ask for so that a step that not every guest has is planned.
ASKING_FOR: dict[str, dict[str, Any]] = {
    "build_config_drive": {"data": {"drive": "config-2", "user_data": "#!/bin/true"}},
    "wait_boot": {"wait": "console"},
    "inject_files": {
        "data": {"files": [{"path": "/root/x", "content": "eA==", "via": "agent"}]},
    },
}


@dataclass(frozen=True)
class Obstacle:
    """What makes a step fail.

    Args:
        step: the step.
        code: of the error that it ends with.
        spec: fields of the guest that lead there.
        full: a directory of the host that has no room meanwhile.
        has_namesake: whether the host has a domain of the guest's name.
    """

    step: str
    code: str
    spec: dict[str, Any] = field(default_factory=dict)
    full: str = ""
    has_namesake: bool = False


OF_THE_WORLD = (
    Obstacle("fetch_image", "digest_mismatch", {"sha256": "0" * 64}),
    Obstacle("create_disks", "host_unsuitable", full=GUESTS_DIRECTORY),
    Obstacle("define_domain", "host_unsuitable", {"bridge": "br-none"}),
    Obstacle("define_domain", "define_rejected", has_namesake=True),
    Obstacle("start_domain", "start_failed", full=CONSOLES_DIRECTORY),
    Obstacle("wait_boot", "boot_timeout", {"wait": "agent", "boot_timeout_s": 2}),
)


@pytest.fixture(scope="module")
def known_before(lab: Lab) -> set[str]:
    """What earlier tests have left broken in this lab; nothing, when it is fresh."""
    return {violation.what for violation in Checker(lab).check(settled=True)}


@contextmanager
def namesake(lab: Lab, host: str, name: str) -> Iterator[None]:
    define_namesake(lab, host, name)
    try:
        yield
    finally:
        undefine_namesake(lab, host, name)


def list_bindings(lab: Lab, host: str) -> str:
    return virsh(lab, host, "nwfilter-binding-list").strip()


def assert_undone(
    lab: Lab, records: Database, host: str, instance_id: str, known_before: set[str]
) -> None:
    """Nothing of the guest is anywhere, and every promise about everything else holds."""
    assert_nothing_left(lab, records, instance_id)
    assert instance_id not in lab.exec(host, ["ls", "-R", "/var/lib/innkeeper"]).stdout
    wait_until(lambda: list_bindings(lab, host) == "", what="no packet filter is left")
    with records.transaction() as session:
        left = session.execute(
            text(
                "SELECT (SELECT count(*) FROM disks WHERE instance_id = :i), state "
                "FROM instances WHERE id = :i"
            ),
            {"i": instance_id},
        ).one()
    assert tuple(left) == (0, "deleted")
    found = [v for v in Checker(lab).check(settled=True) if v.what not in known_before]
    assert not found, format_violations(found)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_in_its_middle_is_undone(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    linux_guest: dict[str, Any],
    records: Database,
    crash: CrashDirectory,
    known_before: set[str],
    step: str,
) -> None:
    host = lab.hosts[0]
    # Files that go through the agent need a guest with one.
    guest = linux_guest if step == "inject_files" else boot_guest
    if SPAWN.get_step(step).wanted_by is not None:
        guest = guest | ASKING_FOR[step]
    point = f"spawn.{step}:inside"
    crash.arm_fail(point)
    operation = client.spawn(name=name, host=host, bridge="br0", **guest)
    with pytest.raises(InnkeeperError) as caught:
        operation.wait(120)
    assert crash.has_struck(point)
    assert (caught.value.code, caught.value.step) == ("host_unsuitable", step)
    # Before the first effect there is nothing to take back; what only looks has made nothing.
    first_effect = next(i for i, spec in enumerate(SPAWN.steps) if spec.undo is not None)
    is_early = STEPS.index(step) < first_effect
    assert caught.value.effect == ("not_started" if is_early else "rolled_back")
    assert_undone(lab, records, host, str(operation.view().instance_id), known_before)


@pytest.mark.parametrize("obstacle", OF_THE_WORLD, ids=lambda each: f"{each.step}-{each.code}")
def test_what_the_world_makes_fail_is_undone(
    client: Innkeeper,
    lab: Lab,
    name: str,
    boot_guest: dict[str, Any],
    records: Database,
    known_before: set[str],
    obstacle: Obstacle,
) -> None:
    host = lab.hosts[0]
    around: AbstractContextManager[None] = nullcontext()
    if obstacle.full:
        around = full_disk(lab, host, obstacle.full)
    elif obstacle.has_namesake:
        around = namesake(lab, host, name)
    spec = {"bridge": "br0", **boot_guest, **obstacle.spec}
    with around:
        operation = client.spawn(name=name, host=host, **spec)
        with pytest.raises(InnkeeperError) as caught:
            operation.wait(120)
    assert (caught.value.code, caught.value.step) == (obstacle.code, obstacle.step)
    assert_undone(lab, records, host, str(operation.view().instance_id), known_before)
