"""A client of the running lab, guests with names of their own, and looks at what is left."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import Busy, NotFound, ServiceError, StateConflict
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.lab


@pytest.fixture(scope="session")
def client(lab: Lab) -> Iterator[Innkeeper]:
    env = lab.env()
    with Innkeeper(env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"]) as client:
        yield client


@pytest.fixture(scope="session")
def records(lab: Lab) -> Iterator[Database]:
    database = Database(lab.env()["INNKEEPER_DATABASE_URL"], application_name="tests")
    yield database
    database.dispose()


@pytest.fixture(autouse=True)
def whole_lab(client: Innkeeper, lab: Lab, crash: CrashDirectory) -> None:
    """Begin with everything alive, whatever an earlier test has left or has just brought back."""
    crash.clear()
    lab.heal()
    revive(lab)

    def takes_guests() -> bool:
        try:
            return all(host.is_up and host.is_enabled for host in client.hosts())
        except ServiceError:
            # Control has just been started and is not listening yet.
            return False

    wait_until(takes_guests, what="every host takes guests")


@pytest.fixture
def name(client: Innkeeper, lab: Lab, crash: CrashDirectory) -> Iterator[str]:
    """A guest's name; the guest is deleted afterwards, and every role is brought back first."""
    chosen = f"t-{uuid.uuid4().hex[:8]}"
    yield chosen
    crash.clear()
    lab.heal()
    revive(lab)
    remove(client, chosen)


def remove(client: Innkeeper, name: str) -> None:
    """Delete a guest, if it is there, with what a failed test may have left under way."""

    def is_gone() -> bool:
        try:
            client.delete(name).wait(2 * PATIENCE_S)
        except NotFound:
            pass
        except (Busy, StateConflict):
            # The latter: it is not known yet where the guest is.
            for view in client.operations(active=True):
                if view.instance_name == name:
                    client.operation(view.id).cancel()
            return False
        return True

    wait_until(is_gone, timeout_s=3 * PATIENCE_S, what=f"{name} is deleted")


@pytest.fixture
def boot_guest(lab: Lab) -> dict[str, Any]:
    env = lab.env()
    return {
        "image": env["INNKEEPER_LAB_BOOT_IMAGE"],
        "sha256": env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"],
        "memory_mib": 64,
    }


@pytest.fixture
def linux_guest(lab: Lab) -> dict[str, Any]:
    env = lab.env()
    return {
        "image": env["INNKEEPER_LAB_IMAGE"],
        "sha256": env["INNKEEPER_LAB_IMAGE_SHA256"],
        "memory_mib": 256,
        "wait": "agent",
    }


def revive(lab: Lab) -> None:
    """Start every role that a test has killed."""
    for role in lab.status()["roles"]:
        if not role["running"]:
            lab.start(role["role"])


def domains_on(lab: Lab, host: str) -> dict[str, str]:
    """Name → state of every domain, as virsh on the host says."""
    listing = lab.exec(host, ["virsh", "list", "--all", "--name"]).stdout.split()
    return {
        name: lab.exec(host, ["virsh", "domstate", name], check=False).stdout.strip()
        for name in listing
    }


def files_of(lab: Lab, host: str, instance_id: str) -> list[str]:
    """Every file on a host that bears a guest's id."""
    found = lab.exec(
        host,
        ["find", "/var/lib/innkeeper", "/srv/innkeeper-shared", "-path", f"*{instance_id}*"],
    )
    return sorted(found.stdout.split())


def assert_nothing_left(lab: Lab, records: Database, instance_id: str) -> None:
    """No domain, file, claim or holder of a guest that is gone."""
    for host in lab.hosts:
        uuids = lab.exec(host, ["virsh", "list", "--all", "--uuid"]).stdout.split()
        assert instance_id not in uuids, f"a domain is left on {host}"
        assert files_of(lab, host, instance_id) == []
    with records.transaction() as session:
        claims = session.execute(
            text("SELECT count(*) FROM claims WHERE instance_id = :id"), {"id": instance_id}
        ).scalar_one()
        holder = session.execute(
            text("SELECT operation_id FROM instances WHERE id = :id"), {"id": instance_id}
        ).scalar_one()
    assert claims == 0
    assert holder is None


def guest_exec(lab: Lab, host: str, name: str, *argv: str) -> None:
    """Run a program inside a guest through its agent."""
    command = {"execute": "guest-exec", "arguments": {"path": argv[0], "arg": list(argv[1:])}}
    done = subprocess.run(
        lab.host_command(host, ["virsh", "qemu-agent-command", name, json.dumps(command)]),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
