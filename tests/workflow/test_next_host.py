"""A host that fails by itself is answered with another one; an insisted one with its error."""

from typing import Any

import pytest
from sqlalchemy import text

from innkeeper import Innkeeper
from innkeeper.cli.timeline import refusal_lines
from innkeeper.errors import DigestMismatch, HostUnsuitable
from lab.handle import Lab
from models.session import Database
from tests.crash_directory import CrashDirectory
from tests.workflow.broken_host import full_disk, get_chosen_host
from tests.workflow.conftest import assert_nothing_left, domains_on, files_of

pytestmark = pytest.mark.lab


def list_claims(records: Database, instance_id: str) -> list[str]:
    with records.transaction() as session:
        return list(
            session.scalars(
                text("SELECT host FROM claims WHERE instance_id = :i"), {"i": instance_id}
            )
        )


def test_a_full_disk_is_answered_with_another_host(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    crash.arm_hold("spawn.fetch_image:claimed")
    operation = client.spawn(name=name, **boot_guest)
    with crash.held("spawn.fetch_image:claimed"):
        first = get_chosen_host(operation)
        full = full_disk(lab, first)
        full.__enter__()
    try:
        instance = operation.wait(180)
    finally:
        full.__exit__(None, None, None)
    assert instance["host"] != first
    assert domains_on(lab, instance["host"])[name] == "running"
    assert name not in domains_on(lab, first)
    assert files_of(lab, first, instance["id"]) == []
    assert list_claims(records, instance["id"]) == [instance["host"]]
    view = operation.view()
    (refusal,) = (r for r in view.refusals if r["code"] == "host_unsuitable")
    assert refusal["host"] == first
    assert "No space left on device" in refusal["message"]
    assert any(
        line.startswith(f"not on {first}: ") and "No space left" in line
        for line in refusal_lines(view)
    )


def test_libvirt_away_before_the_domain_is_defined_is_answered_with_another_host(
    client: Innkeeper,
    lab: Lab,
    records: Database,
    name: str,
    boot_guest: dict[str, Any],
    crash: CrashDirectory,
) -> None:
    crash.arm_hold("spawn.define_domain:claimed")
    operation = client.spawn(name=name, **boot_guest)
    with crash.held("spawn.define_domain:claimed"):
        first = get_chosen_host(operation)
        lab.kill(f"libvirtd:{first}")
    instance = operation.wait(240)
    assert instance["host"] != first
    assert domains_on(lab, instance["host"])[name] == "running"
    # It is undone and not owed: nothing of libvirt was needed for that.
    assert files_of(lab, first, instance["id"]) == []
    assert list_claims(records, instance["id"]) == [instance["host"]]
    refusals = operation.view().refusals
    assert (first, "hypervisor_unavailable") in {(r["host"], r["code"]) for r in refusals}
    lab.start(f"libvirtd:{first}")
    assert name not in domains_on(lab, first)


def test_an_insisted_host_fails_with_its_own_error(
    client: Innkeeper, lab: Lab, records: Database, name: str, boot_guest: dict[str, Any]
) -> None:
    host = lab.hosts[0]
    with full_disk(lab, host):
        operation = client.spawn(name=name, host=host, **boot_guest)
        with pytest.raises(HostUnsuitable, match="No space left on device") as caught:
            operation.wait(120)
    assert (caught.value.host, caught.value.step) == (host, "create_disks")
    assert caught.value.effect == "rolled_back"
    assert_nothing_left(lab, records, str(operation.view().instance_id))


def test_an_images_fault_goes_to_no_other_host(
    client: Innkeeper, name: str, boot_guest: dict[str, Any]
) -> None:
    operation = client.spawn(name=name, **{**boot_guest, "sha256": "0" * 64})
    with pytest.raises(DigestMismatch):
        operation.wait(120)
    view = operation.view()
    assert view.refusals == []
    assert len({step.host for step in view.steps}) == 1
