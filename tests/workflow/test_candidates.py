"""Several destinations are looked at; the first that passes is taken, the others say why not."""

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.errors import PrecheckFailed
from innkeeper.types import MigrationCheck
from lab.handle import Lab
from models.session import Database
from tests.chaos.virsh import define_namesake, undefine_namesake
from tests.conftest import start_lab
from tests.crash_directory import CrashDirectory
from tests.waiting import wait_until
from tests.workflow.conftest import domains_on, files_of, remove

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with three hosts: a source, and two to choose from."""
    with start_lab(hosts=3) as running:
        yield running


@pytest.fixture(scope="module")
def crash(lab: Lab) -> CrashDirectory:
    return CrashDirectory(lab.layout.root / "crash")


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[Innkeeper]:
    env = lab.env()
    with Innkeeper(env["INNKEEPER_BROKER_URL"], env["INNKEEPER_RESULT_URL"]) as client:
        yield client


@pytest.fixture(scope="module")
def records(lab: Lab) -> Iterator[Database]:
    database = Database(lab.env()["INNKEEPER_DATABASE_URL"], application_name="tests")
    yield database
    database.dispose()


@pytest.fixture(scope="module")
def guest(client: Innkeeper, lab: Lab) -> Iterator[str]:
    """A guest that begins each test on the first host."""
    env, name = lab.env(), f"t-{uuid.uuid4().hex[:8]}"
    image, sha256 = env["INNKEEPER_LAB_BOOT_IMAGE"], env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"]
    fields = {"image": image, "sha256": sha256, "memory_mib": 64, "host": lab.hosts[0]}
    client.spawn(name=name, **fields).wait(120)
    yield name
    remove(client, name)


def list_claims(records: Database, name: str) -> list[str]:
    query = text(
        "SELECT c.host FROM claims c JOIN instances i ON i.id = c.instance_id WHERE i.name = :n"
    )
    with records.transaction() as session:
        return sorted(session.scalars(query, {"n": name}))


def find_dead(lab: Lab, hosts: list[str]) -> str | None:
    return next((host for host in hosts if not lab.role(f"worker:{host}")["running"]), None)


def test_the_checks_alone_ask_every_host(client: Innkeeper, lab: Lab, guest: str) -> None:
    a, b, c = lab.hosts
    define_namesake(lab, b, guest)
    found = MigrationCheck.model_validate(client.check_migration(guest).wait(60))
    undefine_namesake(lab, b, guest)
    assert (found.src, found.can_migrate) == (a, True)
    assert {each.host: each.passed for each in found.destinations} == {b: False, c: True}


def test_a_candidate_that_fails_is_passed_by_before_anything_is_made(
    client: Innkeeper, lab: Lab, records: Database, guest: str, crash: CrashDirectory
) -> None:
    """The worker that chooses dies right after the choice, and the chain is rung anew."""
    a, b, c = lab.hosts
    define_namesake(lab, b, guest)
    crash.arm_kill("live_migrate.choose_destination:recorded")
    operation = client.migrate(guest)
    assert crash.wait_struck("live_migrate.choose_destination:recorded")
    wait_until(lambda: not lab.role(f"worker:{a}")["running"], what="the worker kills itself")
    lab.start(f"worker:{a}")
    moved = operation.wait(120)
    assert domains_on(lab, b) == {guest: "shut off"}
    undefine_namesake(lab, b, guest)
    view = operation.view()
    assert (moved["host"], view.dst_host) == (c, c)
    assert [step.name for step in view.steps].count("check_destination") == 1
    (refusal,) = (each for each in view.refusals if each["code"] == PrecheckFailed.code)
    assert refusal["host"] == b
    assert "another domain of the name" in refusal["message"]
    assert list_claims(records, guest) == [c]
    assert files_of(lab, b, moved["id"]) == []
    assert client.migrate(guest, dst=a).wait(120)["host"] == a


def test_a_candidate_that_is_down_is_passed_over(
    client: Innkeeper, lab: Lab, records: Database, guest: str, crash: CrashDirectory
) -> None:
    """It was the best one, and claimed: its claim is given back for the one that is taken."""
    a, *others = lab.hosts
    crash.arm_kill("live_migrate.check_candidate:inside")
    operation = client.migrate(guest)
    assert crash.wait_struck("live_migrate.check_candidate:inside")
    wait_until(lambda: find_dead(lab, others) is not None, what="the worker kills itself")
    dead = find_dead(lab, others)
    (living,) = (host for host in others if host != dead)
    moved = operation.wait(120)
    assert moved["host"] == living
    (refusal,) = (each for each in operation.view().refusals if each["host"] == dead)
    assert "is down" in refusal["message"]
    assert list_claims(records, guest) == [living]
    lab.start(f"worker:{dead}")
    assert client.migrate(guest, dst=a).wait(120)["host"] == a


def test_where_none_passes_every_refusal_is_kept(
    client: Innkeeper, lab: Lab, records: Database, guest: str
) -> None:
    a, b, c = lab.hosts
    for host in (b, c):
        define_namesake(lab, host, guest)
    operation = client.migrate(guest)
    with pytest.raises(PrecheckFailed, match="another domain of the name"):
        operation.wait(120)
    for host in (b, c):
        assert domains_on(lab, host) == {guest: "shut off"}
        undefine_namesake(lab, host, guest)
    refused = {each["host"] for each in operation.view().refusals}
    assert refused >= {b, c}
    assert list_claims(records, guest) == [a]
    view = client.instance(guest)
    assert (view.host, view.state, view.operation_id) == (a, "active", None)
