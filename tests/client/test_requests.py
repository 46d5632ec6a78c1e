"""What is asked for is checked and worded before anything is sent."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from innkeeper import Innkeeper, InstanceSpec, InvalidRequest, MigrationPolicy, StopPolicy, requests
from innkeeper.requests import Asker

SPEC = {"name": "vm-1", "image": "https://me:secret@img.example/a/noble.qcow2?token=secret2"}


@pytest.fixture
def nowhere() -> Innkeeper:
    return Innkeeper("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/1")


WRONG: dict[str, tuple[Callable[[Innkeeper], Any], str]] = {
    "unknown field": (lambda inn: inn.spawn(SPEC, memory_mb=3), "memory_mb"),
    "bad value": (lambda inn: inn.spawn(SPEC, vcpus=0), "vcpus"),
    "missing field": (lambda inn: inn.spawn(name="vm-1"), "image"),
    "not a mapping": (lambda inn: inn.spawn(["vm-1"]), "(request)"),  # type: ignore[arg-type]
    "bad name": (lambda inn: inn.start("VM 1"), "instance"),
    "no name": (lambda inn: inn.delete(""), "instance"),
    "name of another type": (lambda inn: inn.delete(7), "instance"),  # type: ignore[arg-type]
    "bad policy": (lambda inn: inn.migrate("vm-1", deadline_s=-1), "deadline_s"),
    "bad key": (lambda inn: inn.start("vm-1", idempotency_key=""), "idempotency_key"),
    "bad operation": (lambda inn: inn.operation("3f2a"), "operation_id"),
}


@pytest.mark.parametrize(("call", "path"), WRONG.values(), ids=WRONG.keys())
def test_wrong_requests_fail_before_anything_is_sent(
    nowhere: Innkeeper, call: Callable[[Innkeeper], Any], path: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(nowhere)

    assert [problem["path"] for problem in caught.value.details["problems"]] == [path]


@pytest.mark.parametrize("address", [None, "", "localhost", "http://x", "redis://x:port/0"])
def test_a_missing_or_wrong_address_is_said_at_once_and_not_repeated(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INNKEEPER_BROKER_URL", raising=False)

    with pytest.raises(InvalidRequest, match=r"^INNKEEPER_BROKER_URL .*\.$") as caught:
        Innkeeper(address, "redis://127.0.0.1:1/1")

    assert "http" not in caught.value.message


def test_flower_sees_what_is_done_to_which_guest_and_no_secret() -> None:
    spec = InstanceSpec.model_validate(SPEC | {"vcpus": 2, "memory_mib": 512, "host": "hv-a"})

    message = requests.spawn(spec, Asker())

    assert message.shown_as == "vm-1 image=noble.qcow2 2 vcpu 512 MiB on hv-a"
    moved = requests.live_migrate("vm-1", MigrationPolicy(dst="hv-b"), Asker())
    assert moved.shown_as == "vm-1 to hv-b storage=auto"


def test_only_what_the_caller_said_is_sent() -> None:
    spec = InstanceSpec.model_validate(SPEC | {"wait": "agent", "vcpus": 1})

    message = requests.spawn(spec, Asker(requested_by="me", idempotency_key="k"))

    assert message.kwargs.pop("call") != requests.spawn(spec, Asker()).kwargs.get("call")
    assert message.kwargs == {
        "spec": {**SPEC, "wait": "agent", "vcpus": 1},
        "requested_by": "me",
        "idempotency_key": "k",
    }
    assert requests.stop("vm-1", StopPolicy(), Asker()).kwargs == {
        "instance": "vm-1",
        "policy": {},
    }


def test_fields_may_stand_beside_a_ready_object() -> None:
    spec = InstanceSpec.model_validate(SPEC)

    assert requests.merged(InstanceSpec, spec, {}) is spec
    assert requests.merged(InstanceSpec, spec, {"vcpus": 4}).vcpus == 4
    assert requests.merged(InstanceSpec, SPEC, {"vcpus": 4}).image == SPEC["image"]


def test_an_instance_is_a_name_or_a_uuid() -> None:
    text = "0b5cf9a2-38fb-4ae4-a5a1-a0fb3d0d4b11"

    assert requests.instance_reference("vm-1") == "vm-1"
    assert requests.instance_reference(UUID(text)) == text
    assert requests.instance_reference(text) == text
