"""Beat on a real Redis: no pile of chores in front of a worker that is away."""

from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from celery.beat import ScheduleEntry
from pydantic import SecretStr

from lab.handle import Lab
from workers.app import build_app
from workers.beat import MOST_WAITING, CalmScheduler
from workers.settings import Settings

pytestmark = pytest.mark.lab

QUEUE = "t-crowded"


@pytest.fixture
def app(lab: Lab) -> Celery:
    env = lab.env()
    settings = Settings(
        database_url=SecretStr(env["INNKEEPER_DATABASE_URL"]),
        broker_url=SecretStr(env["INNKEEPER_BROKER_URL"]),
        result_url=SecretStr(env["INNKEEPER_RESULT_URL"]),
    )
    return build_app(settings, node="beat-test")


@pytest.fixture
def broker(lab: Lab) -> Iterator[redis.Redis]:
    broker = redis.Redis.from_url(lab.env()["INNKEEPER_BROKER_URL"])
    yield broker
    broker.delete(QUEUE)
    broker.close()


def test_chores_do_not_pile_up(app: Celery, broker: redis.Redis) -> None:
    scheduler = CalmScheduler(app=app, lazy=True)
    entry = ScheduleEntry(
        name="sweep", task="innkeeper.sweep", schedule=1.0, options={"queue": QUEUE}, app=app
    )
    for _ in range(MOST_WAITING + 5):
        scheduler.apply_entry(entry, producer=scheduler.producer)
    assert broker.llen(QUEUE) == MOST_WAITING
    broker.rpop(QUEUE)
    scheduler.apply_entry(entry, producer=scheduler.producer)
    assert broker.llen(QUEUE) == MOST_WAITING


def test_chores_carry_no_time_of_the_senders_clock(app: Celery) -> None:
    """A worker whose clock is ahead would throw them all away."""
    for chore in app.conf.beat_schedule.values():
        assert "expires" not in chore["options"]
