"""The worker's consumer, with its events gathered before they are sent."""

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

# Flower need not know sooner.
GATHER_S = 0.2


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's consumer, which sends its tasks' events a few times a second.

    Celery sends them in the loop that also takes the messages, up to three times for each task; a
    short task waits longer for that than it runs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_flush_due = False
        super().__init__(*args, **kwargs)

    def on_send_event_buffered(self) -> None:
        """Take note that there are events; called from any thread."""
        if self.hub and not self._is_flush_due:
            self._is_flush_due = True
            self.hub.call_soon(self._flush_later)

    def shutdown(self) -> None:
        """End, with the last events sent."""
        self._flush_events()
        super().shutdown()

    def _flush_later(self) -> None:
        self.hub.call_later(GATHER_S, self._flush_now)

    def _flush_now(self) -> None:
        self._is_flush_due = False
        self._flush_events()
