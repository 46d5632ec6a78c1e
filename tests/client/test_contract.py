"""The names on the wire stay."""

from pathlib import Path
from uuid import UUID

from innkeeper import contract


def test_task_names_are_only_ever_added() -> None:
    published = (Path(__file__).parent / "task_names.txt").read_text().split()
    now = contract.REQUEST_TASKS | contract.QUERY_TASKS

    assert set(published) <= now, "a published task name is gone: workers and clients would part"
    assert now <= set(published), "add the new name to task_names.txt; it can then never change"


def test_every_constant_is_a_request_or_a_query() -> None:
    constants = {
        value
        for value in vars(contract).values()
        if isinstance(value, str) and value.startswith("innkeeper.") and "contract" not in value
    }

    assert constants == contract.REQUEST_TASKS | contract.QUERY_TASKS
    assert not contract.REQUEST_TASKS & contract.QUERY_TASKS


def test_queue_names() -> None:
    assert contract.CONTROL_QUEUE == "control"
    assert contract.host_queue("hv-a") == "host.hv-a"


def test_an_idempotency_key_always_gives_the_same_id() -> None:
    fixed = contract.operation_id_for("order-17", "innkeeper.instance.stop", {"instance": "a"})

    assert fixed == UUID("dc3973d1-8040-5a5e-8834-239473b72e12")
    assert (
        contract.operation_id_for("order-18", "innkeeper.instance.stop", {"instance": "a"}) != fixed
    )
    assert (
        contract.operation_id_for("order-17", "innkeeper.instance.stop", {"instance": "b"}) != fixed
    )
    assert contract.operation_id_for(None) != contract.operation_id_for(None)
