"""The operation that brings an image meanwhile, its worker killed at every boundary of its step.

No request begins it, so the matrix of crash points does not reach it.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from lab.handle import Lab
from models.session import Database
from tasks.catalogue import WORKFLOWS
from tasks.crashpoints import FAILURE_MOMENTS, list_points
from tests.crash_directory import CrashDirectory
from tests.virt.instant_sources import InstantSources
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.lab
BOOT_S = 120.0
HOST = "hv-a"
POINTS = [
    point.name
    for point in list_points(WORKFLOWS, ())
    if point.kind == "prefetch" and point.moment not in FAILURE_MOMENTS
]


@pytest.fixture(scope="module")
def hydrating(lab: Lab) -> Iterator[None]:
    """The host hydrates by itself, at once."""
    restart_worker(lab, {"INNKEEPER_HYDRATION_DELAY_S": "0"})
    yield
    restart_worker(lab, {})


def dead_roles(lab: Lab) -> list[str]:
    return [role["role"] for role in lab.status()["roles"] if not role["running"]]


def restart_worker(lab: Lab, env: dict[str, str]) -> None:
    lab.kill(f"worker:{HOST}")
    lab.start(f"worker:{HOST}", env=env)


@pytest.mark.parametrize("point", POINTS)
def test_an_image_is_brought_although_its_worker_dies(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    crash: CrashDirectory,
    hydrating: None,
    name: str,
    point: str,
) -> None:
    del hydrating
    sources = InstantSources()
    try:
        fields = {**sources.offer(lab), "host": HOST, "memory_mib": 64}
        crash.arm_kill(point)
        client.spawn(name=name, **fields).wait(BOOT_S)
        wait_until(lambda: crash.has_struck(point), what=f"a process dies at {point}")
        # It marks the place before it dies.
        wait_until(lambda: bool(dead_roles(lab)), what="it is dead")
        for role in dead_roles(lab):
            lab.start(role, env={"INNKEEPER_HYDRATION_DELAY_S": "0"})

        def is_hydrated() -> bool:
            with records.transaction() as session:
                return bool(
                    session.execute(
                        text(
                            "SELECT d.remote_url IS NULL FROM disks d JOIN instances i "
                            "ON i.id = d.instance_id WHERE i.name = :n AND i.state = 'active'"
                        ),
                        {"n": name},
                    ).scalar()
                )

        wait_until(is_hydrated, timeout_s=2 * PATIENCE_S, what="the guest is hydrated")
    finally:
        sources.stop()
