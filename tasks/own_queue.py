"""Hands the next task of a chain over inside a worker, when it is for the worker's own queue.

Most steps of an operation follow each other on one host. Their messages need not travel to Redis
and back: they enter the same worker where its consumer would have put them, and everything after
that is Celery's own – the request, its events, the pool, the rest of the chain.

Nothing rests on it. Such a message dies with the worker like one that it had taken from Redis and
not begun; the ledger knows that the step was rung, and it is rung again.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import structlog
from celery import Task, current_task
from kombu.message import Message

from tasks.hands import Hands

log = structlog.get_logger(__name__)


class OwnQueue:
    """A worker's way to itself; closed until the worker consumes, and again when it ends.

    What the worker has in hand is for messages that come this way.
    """

    def __init__(self) -> None:
        self.hands = Hands()
        self._consumer: Any = None
        self._name: str | None = None

    def open(self, consumer: Any, name: str) -> None:
        """Begin to take messages.

        Args:
            consumer: the worker's consumer, which lives as long as the worker.
            name: the queue that it consumes.
        """
        self._name, self._consumer = name, consumer

    def close(self) -> None:
        """Take no more: what is left of a chain is for the worker that comes next."""
        self._consumer = None

    def takes(self, queue: str | None) -> bool:
        """Tell whether a message for a queue would come here."""
        return self._consumer is not None and queue == self._name

    def deliver(self, body: Any, headers: dict[str, Any], properties: dict[str, Any]) -> None:
        """Let the worker receive a message, as its consumer does.

        Raises:
            ClosedError: when the worker is ending.
        """
        consumer = self._consumer
        if consumer is None:
            raise ClosedError
        message = Message(
            body=body,
            headers=headers,
            properties=properties,
            delivery_info={"exchange": "", "routing_key": self._name},
        )
        # What was never encoded needs no decoding.
        message._decoded_cache = body
        try:
            consumer.strategies[headers["task"]](
                message, None, _do_nothing, _do_nothing, consumer.on_task_message
            )
        except RuntimeError as exc:
            # The pool takes nothing any more.
            raise ClosedError from exc


class ClosedError(Exception):
    """The worker is ending and takes no messages."""


class StepTask(Task):  # type: ignore[misc]
    """A step's task: when it is rung from the step before it in the same worker, it stays there."""

    abstract = True
    own_queue: OwnQueue

    def goes_on_here(self, position: int) -> bool:
        """Tell whether the running task's chain goes on with a step, and in this worker."""
        chain = self.request.chain
        return (
            bool(chain)
            and chain[-1]["kwargs"].get("position") == position
            and self.own_queue.takes(chain[-1]["options"].get("queue"))
        )

    def apply_async(
        self, args: Any = None, kwargs: Any = None, producer: Any = None, **options: Any
    ) -> Any:
        """Publish the task, or hand it over."""
        # Only the next one of a chain: its predecessor's thread is about to be free. Whoever rings
        # for many operations spreads them over all the workers of a queue.
        is_next = current_task and options.get("parent_id") == current_task.request.id
        if producer is None and is_next and self.own_queue.takes(options.get("queue")):
            try:
                result = super().apply_async(
                    args, kwargs, producer=_Handover(self.own_queue), **options | {"retry": False}
                )
            except ClosedError:
                log.info("the worker is ending, the next step is rung through redis")
            else:
                self.own_queue.hands.note_message(*_step_of(kwargs))
                return result
        return super().apply_async(args, kwargs, producer=producer, **options)


def let_go_of_next(sender: Any, kwargs: dict[str, Any], **_: Any) -> None:
    """Give up what was kept for a message that was not sent; after every task, however it ended."""
    if isinstance(sender, StepTask):
        operation_id, position = _step_of(kwargs)
        sender.own_queue.hands.let_go_of_silent(operation_id, position + 1)


def _step_of(kwargs: dict[str, Any]) -> tuple[UUID, int]:
    return UUID(kwargs["operation_id"]), int(kwargs["position"])


class _Handover:
    """Stands in for kombu's producer."""

    connection = SimpleNamespace(_reraise_as_library_errors=nullcontext)

    def __init__(self, own_queue: OwnQueue) -> None:
        self._own_queue = own_queue

    def publish(self, body: Any, *, exchange: str, headers: dict[str, Any], **options: Any) -> None:
        if exchange:
            # Celery's note that a message was sent. It was not; that it was received follows.
            return
        self._own_queue.deliver(
            body,
            headers,
            {key: options.get(key) for key in ("correlation_id", "reply_to", "priority")},
        )


def _do_nothing(*_: Any) -> None:
    """Acknowledge nothing: there is no broker that would redeliver."""
