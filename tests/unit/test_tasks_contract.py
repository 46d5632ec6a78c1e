"""The names on the wire: the client's and the worker's must be the same, and are never removed."""

from pathlib import Path

from celery import Celery

from innkeeper import contract
from innkeeper.errors import FetchFailed
from tasks.catalogue import WORKFLOWS
from tasks.chores import register_chores
from tasks.registration import register_tasks
from tasks.retry import LONGEST_S, backoff_s

NAMES = Path(__file__).parent / "task_names.txt"


def registered_names() -> set[str]:
    app = Celery("names", set_as_current=False)
    register_tasks(app, lambda: None)  # type: ignore[arg-type, return-value]
    register_chores(app, lambda: None)  # type: ignore[arg-type, return-value]
    return {name for name in app.tasks if name.startswith("innkeeper.")}


def test_names_are_only_added() -> None:
    assert registered_names() == set(NAMES.read_text().split())


def test_client_and_worker_speak_of_the_same_tasks() -> None:
    assert registered_names() >= contract.REQUEST_TASKS | contract.QUERY_TASKS


def test_steps_have_names_of_their_own() -> None:
    for workflow in WORKFLOWS:
        names = [step.name for step in workflow.steps]
        assert len(names) == len(set(names))


def test_waits_grow_and_have_an_end() -> None:
    error = FetchFailed("x")
    waits_s = [backoff_s(n, error) for n in range(12)]
    assert waits_s == sorted(waits_s)
    assert waits_s[0] < 1
    assert waits_s[-1] == LONGEST_S
    assert backoff_s(0, FetchFailed("x", {"retry_after_s": 7})) == 7
