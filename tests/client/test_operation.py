"""Waiting, watching and cancelling, against a real worker."""

import time
from uuid import uuid4

import pytest
from celery import Celery
from control_stub import Control
from private_redis import PrivateRedis

from innkeeper import (
    Cancelled,
    GuestDied,
    Innkeeper,
    NoHostFits,
    NotFound,
    OperationState,
    WaitTimeout,
    operation,
)
from tests.waiting import PATIENCE_S

IMAGE = "file:///srv/noble.qcow2"


def test_wait_returns_the_result(inn: Innkeeper, control: Control) -> None:
    spawned = inn.spawn(name="vm-1", image=IMAGE, reason="a test")

    assert spawned.wait(timeout_s=PATIENCE_S) == {"name": "vm-1", "state": "active", "host": "hv-a"}
    assert spawned.result()["host"] == "hv-a"
    (sent,) = control.requests(spawned.id)
    assert sent == (
        "innkeeper.instance.spawn",
        {
            "spec": {"name": "vm-1", "image": IMAGE},
            "requested_by": "tests",
            "reason": "a test",
        },
    )


def test_every_verb_is_sent_under_its_name(inn: Innkeeper, control: Control) -> None:
    sent = {
        "live_migrate": inn.migrate("vm-1", dst="hv-b"),
        "start": inn.start("vm-1"),
        "stop": inn.stop("vm-1", force=True),
        "reboot": inn.reboot("vm-1", kind="hard"),
        "delete": inn.delete("vm-1"),
    }
    for verb, each in sent.items():
        each.wait(timeout_s=PATIENCE_S)
        ((task, _),) = control.requests(each.id)
        assert task == f"innkeeper.instance.{verb}"


def test_a_failed_operation_raises_its_typed_error(inn: Innkeeper) -> None:
    with pytest.raises(GuestDied) as caught:
        inn.spawn(name="dies", image=IMAGE).wait(timeout_s=PATIENCE_S)

    assert caught.value.host == "hv-a"
    assert caught.value.step == "define"


def test_without_a_stored_outcome_the_row_is_asked(inn: Innkeeper) -> None:
    assert inn.spawn(name="quiet", image=IMAGE).wait(timeout_s=PATIENCE_S)["name"] == "quiet"


def test_the_same_key_is_the_same_operation(inn: Innkeeper) -> None:
    first = inn.start("vm-1", idempotency_key="once")
    second = inn.start("vm-1", idempotency_key="once")

    assert first.id == second.id
    assert first.wait(timeout_s=PATIENCE_S) == second.wait(timeout_s=PATIENCE_S)


def test_watch_yields_changes_to_the_end_and_never_goes_back(inn: Innkeeper) -> None:
    spawned = inn.spawn(name="watched", image=IMAGE)

    views = list(spawned.watch(timeout_s=PATIENCE_S))

    fractions = [view.progress.fraction for view in views]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(views) >= 3
    assert [view.state.is_final for view in views] == [False] * (len(views) - 1) + [True]
    assert spawned.result()["name"] == "watched"


def test_watch_leaves_a_failure_to_result(inn: Innkeeper) -> None:
    spawned = inn.spawn(name="dies", image=IMAGE)

    assert list(spawned.watch(timeout_s=PATIENCE_S))[-1].state is OperationState.FAILED
    with pytest.raises(GuestDied):
        spawned.result()


def test_a_request_refused_at_the_door_is_raised_by_wait_and_watch(inn: Innkeeper) -> None:
    with pytest.raises(NoHostFits) as caught:
        inn.spawn(name="no-host", image=IMAGE).wait(timeout_s=PATIENCE_S)
    assert caught.value.details["refusals"][0]["host"] == "hv-a"
    with pytest.raises(NoHostFits):
        list(inn.spawn(name="no-host", image=IMAGE).watch(timeout_s=PATIENCE_S))


def test_a_running_operation_outlives_a_wait(inn: Innkeeper) -> None:
    slow = inn.spawn(name="slow", image=IMAGE)
    began = time.monotonic()

    with pytest.raises(WaitTimeout) as caught:
        slow.wait(timeout_s=0.7)
    # Far below the two minutes after which a wait gives up by itself.
    assert time.monotonic() - began < 20
    assert caught.value.details["operation_id"] == str(slow.id)
    with pytest.raises(WaitTimeout):
        list(slow.watch(timeout_s=0.3))
    with pytest.raises(WaitTimeout):
        slow.result()
    slow.cancel()


def test_cancel_from_another_client(inn: Innkeeper) -> None:
    slow = inn.spawn(name="slow", image=IMAGE)

    view = slow.cancel()

    assert view.cancel_requested
    with pytest.raises(Cancelled):
        inn.operation(str(slow.id)).wait(timeout_s=PATIENCE_S)


def test_a_lost_request_is_sent_again_under_the_same_id(
    inn: Innkeeper, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Time enough for the third to arrive before a fourth would be sent.
    monkeypatch.setattr(operation, "_ARRIVAL_S", 1.0)
    monkeypatch.setattr(operation, "_ASK_EVERY_S", 0.2)
    control.lost = 2

    started = inn.start("vm-1")

    assert started.wait(timeout_s=PATIENCE_S)["name"] == "vm-1"
    assert len(control.requests(started.id)) == 3


def test_an_operation_that_had_a_row_is_never_sent_again(
    inn: Innkeeper, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "_ARRIVAL_S", 0.1)
    monkeypatch.setattr(operation, "_ASK_EVERY_S", 0.1)
    slow = inn.spawn(name="slow", image=IMAGE)
    next(slow.watch(timeout_s=PATIENCE_S))
    del control.operations[str(slow.id)]

    with pytest.raises(NotFound):
        slow.wait(timeout_s=PATIENCE_S)

    assert len(control.requests(slow.id)) == 1


def test_an_unknown_operation_is_not_found(inn: Innkeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "_ARRIVAL_S", 0.3)

    with pytest.raises(NotFound):
        inn.operation(uuid4()).wait(timeout_s=PATIENCE_S)
    with pytest.raises(NotFound):
        inn.operation(uuid4()).cancel()


def test_plain_celery_gets_result_and_typed_error(
    control: Control, private_redis: PrivateRedis
) -> None:
    app = Celery(
        broker=private_redis.broker_url, backend=private_redis.result_url, set_as_current=False
    )
    kwargs = {"spec": {"name": "vm-9", "image": IMAGE}}
    sent = app.send_task("innkeeper.instance.spawn", kwargs=kwargs, queue="control")
    assert sent.get(timeout=PATIENCE_S)["name"] == "vm-9"

    kwargs = {"spec": {"name": "dies", "image": IMAGE}}
    sent = app.send_task("innkeeper.instance.spawn", kwargs=kwargs, queue="control")
    with pytest.raises(GuestDied):
        sent.get(timeout=PATIENCE_S)


def test_questions(inn: Innkeeper) -> None:
    assert [each.name for each in inn.instances()] == ["vm-1"]
    assert inn.instance("vm-2").name == "vm-2"
    assert [each.name for each in inn.hosts()] == ["hv-a"]
    assert inn.disable_host("hv-a", "mending").disabled_by == "tests"
    assert inn.enable_host("hv-a").is_enabled
    assert all(not each.state.is_final for each in inn.operations(active=True))
    with pytest.raises(NotFound):
        inn.instance("vm-0")
    assert [(each.part, each.ok) for each in inn.check()] == [
        ("broker", True),
        ("result backend", True),
        ("control worker", True),
        ("database", True),
    ]
