"""Migrations wait in line: in order, shown, cancellable, and the next is called, not found."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from innkeeper import Innkeeper
from innkeeper.errors import Cancelled
from innkeeper.operation import Operation
from lab.handle import Lab
from tests.waiting import PATIENCE_S
from tests.workflow.conftest import remove
from tests.workflow.test_migrate import begin_slow_migration, hurry, spawn_on

pytestmark = pytest.mark.lab


@pytest.fixture
def others(
    client: Innkeeper, lab: Lab, name: str, boot_guest: dict[str, Any]
) -> Iterator[list[str]]:
    names = [f"{name}-{n}" for n in range(3)]
    spawned = [client.spawn(name=each, host=lab.hosts[0], **boot_guest) for each in names]
    for operation in spawned:
        operation.wait(120)
    yield names
    for each in names:
        remove(client, each)


def wait_in_line(operation: Operation, place: str) -> None:
    """Wait until an operation that has just been sent says where it stands."""
    assert any(place in view.progress.text for view in operation.watch(PATIENCE_S))


def test_the_next_in_line_is_called_and_one_that_waits_can_be_cancelled(
    client: Innkeeper, lab: Lab, name: str, linux_guest: dict[str, Any], others: list[str]
) -> None:
    a, b = lab.hosts[:2]
    spawn_on(client, name, a, linux_guest)
    inside = begin_slow_migration(client, lab, name, a, b)
    waiting: list[Operation] = []
    for place, other in zip(("1st", "2nd", "3rd"), others, strict=True):
        waiting.append(client.migrate(other, dst=b))
        wait_in_line(waiting[-1], f"its turn, {place} in line for {a} → {b}: 1 migration")
    assert "its turn, 3rd" in str(client.instance(others[2]).waiting_for)
    waiting[1].cancel()
    with pytest.raises(Cancelled):
        waiting[1].wait(60)
    wait_in_line(waiting[2], "2nd in line")
    # Without a sweeper nobody finds what is due: only a call brings the next one in.
    lab.kill("beat", signal.SIGSTOP)
    try:
        hurry(lab, name, a)
        assert inside.wait(120)["host"] == b
        assert [waiting[n].wait(120)["host"] for n in (0, 2)] == [b, b]
    finally:
        lab.kill("beat", signal.SIGCONT)
    steps = [next(s for s in waiting[n].view().steps if s.name == "migrate") for n in (0, 2)]
    assert [step.attempt for step in steps] == [1, 1]
    assert steps[0].finished_at
    assert steps[1].started_at
    assert steps[0].finished_at <= steps[1].started_at
    assert all(step.waiting_since for step in steps)
    assert client.instance(others[1]).host == a
