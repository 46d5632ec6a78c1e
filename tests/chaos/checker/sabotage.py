"""Breaks one thing that the checker should see, and puts it back."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import redis

from lab.handle import Lab
from tests.chaos.checker.ledger_look import connect
from tests.chaos.checker.violation import Violation

Find = Callable[..., list[Violation]]


def names(found: list[Violation]) -> set[str]:
    return {violation.invariant for violation in found}


def state_dir(lab: Lab, host: str) -> Path:
    return lab.layout.host(host) / "innkeeper"


@contextmanager
def sql(lab: Lab, change: str, back: str, *values: Any) -> Iterator[None]:
    """Alter rows, and put them back."""
    with connect(lab.env()["INNKEEPER_DATABASE_URL"]) as connection:
        connection.execute(change, values[: change.count("%s")])
        try:
            yield
        finally:
            connection.execute(back, values[: back.count("%s")])


@contextmanager
def file(path: Path) -> Iterator[Path]:
    """Drop a file, and take it away with the directories that were made for it."""
    made = [one for one in path.parents if not one.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("left behind")
    try:
        yield path
    finally:
        path.unlink()
        for directory in made:
            directory.rmdir()


@contextmanager
def outcome(
    lab: Lab, task_id: str | UUID, change: Callable[[dict[str, Any]], object] | None
) -> Iterator[None]:
    """Alter a stored outcome, or take it away, and put it back."""
    key = f"celery-task-meta-{task_id}"
    with redis.Redis.from_url(lab.env()["INNKEEPER_RESULT_URL"]) as store:
        true = store.get(key)
        meta = json.loads(true)
        if change is None:
            store.delete(key)
        else:
            change(meta)
            store.set(key, json.dumps(meta))
        try:
            yield
        finally:
            store.set(key, true, ex=86400)
