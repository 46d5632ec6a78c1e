"""Every error class arrives as itself, by every way an error travels."""

import json
import pickle
import uuid

import pytest
from control_stub import Control
from private_redis import PrivateRedis

import innkeeper
from innkeeper import InnkeeperError, InternalError, ServiceError
from innkeeper.errors import catalogue, from_wire
from innkeeper.transport import Transport

DETAILS = {"host": "hv-a", "step": "define", "effect": "unknown", "hint": "Look.", "n": [1, 2]}


@pytest.fixture
def transport(private_redis: PrivateRedis) -> Transport:
    return Transport(private_redis.broker_url, private_redis.result_url, 30)


def same(left: InnkeeperError, right: InnkeeperError) -> bool:
    return type(left) is type(right) and left.to_wire() == right.to_wire()


@pytest.mark.parametrize("cls", catalogue().values(), ids=catalogue().keys())
def test_each_class_survives_json_pickle_and_the_result_backend(
    cls: type[InnkeeperError], control: Control, transport: Transport
) -> None:
    error = cls("The guest vm-1 did not do it within 3 s.", DETAILS)

    assert same(from_wire(json.loads(json.dumps(error.to_wire()))), error)
    assert same(pickle.loads(pickle.dumps(error)), error)
    assert same(cls(error.message, error.details), error)

    task_id = uuid.uuid4()
    control.app.backend.store_result(str(task_id), error, "FAILURE")
    outcome = transport.find_outcome(task_id)
    assert outcome is not None
    assert outcome.error is not None
    assert same(outcome.error, error)


def test_each_class_is_exported_and_has_a_code_of_its_own() -> None:
    for code, cls in catalogue().items():
        assert getattr(innkeeper, cls.__name__) is cls
        assert cls.code == code
        assert 0 < cls.exit_code < 126


def test_a_class_of_a_newer_release_keeps_its_sentence_and_facts(
    control: Control, transport: Transport
) -> None:
    newer = type("NotYetKnown", (Exception,), {"__module__": "innkeeper.errors"})
    task_id = uuid.uuid4()
    control.app.backend.store_result(str(task_id), newer("It rains.", {"host": "hv-a"}), "FAILURE")

    outcome = transport.find_outcome(task_id)

    assert outcome is not None
    assert type(outcome.error) is InnkeeperError
    assert outcome.error.message == "It rains."
    assert outcome.error.host == "hv-a"


def test_a_defect_of_the_worker_is_an_internal_error(inn: innkeeper.Innkeeper) -> None:
    with pytest.raises(InternalError, match="ZeroDivisionError: division by zero"):
        inn.instance("vm-bug")


def test_a_task_the_worker_does_not_know_asks_for_an_upgrade(
    control: Control, transport: Transport
) -> None:
    with pytest.raises(ServiceError) as caught:
        transport.ask("innkeeper.instance.not_yet", {})

    assert "Upgrade" in caught.value.hint
