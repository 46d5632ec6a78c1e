"""Making up for lost outcomes: one thread of a process at a time."""

import threading
from typing import Any

from celery import Celery

from tasks.bells import Bells
from tests.waiting import PATIENCE_S


class _SlowDatabase:
    """Answers nothing before it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()

    def run(self, work: Any) -> list[Any]:
        self.asked.set()
        assert self.answer.wait(PATIENCE_S)
        return []

    run_one = run


def test_a_second_sweep_does_not_publish_what_the_first_is_publishing() -> None:
    database = _SlowDatabase()
    bells = Bells(Celery(set_as_current=False, backend="redis://127.0.0.1:1/0"), database)  # type: ignore[arg-type]
    first = threading.Thread(target=bells.make_up_outcomes, daemon=True)
    first.start()
    assert database.asked.wait(PATIENCE_S)

    database.asked.clear()
    assert bells.make_up_outcomes() == 0
    assert not database.asked.is_set()

    database.answer.set()
    first.join(PATIENCE_S)
    bells.make_up_outcomes()
    assert database.asked.is_set()
