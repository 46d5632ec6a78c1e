"""Beat's scheduler: no pile of chores for a control worker that is away.

Messages with an expiry would not do: Celery writes it as a time of the sender's clock, so a worker
whose clock is ahead throws every chore away, and with the sweeper's go all lost bells.
"""

from typing import Any

import structlog
from celery.beat import ScheduleEntry, Scheduler
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

MOST_WAITING = 20


class CalmScheduler(Scheduler):  # type: ignore[misc]
    """Sends a chore only while its queue is short; the next beat looks again."""

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Send a due chore, unless its queue has a backlog."""
        waiting = self._count_waiting(str(entry.options.get("queue", "control")), producer)
        if waiting >= MOST_WAITING:
            log.warning("chore not sent, its queue is long", chore=entry.name, waiting=waiting)
            return
        super().apply_entry(entry, producer=producer)

    def _count_waiting(self, queue: str, producer: Any) -> int:
        try:
            return int(producer.channel.client.llen(queue))
        except (OperationalError, RedisError, OSError):
            # Sending will fail in its own way, and say so.
            return 0
