"""How the client speaks to Innkeeper: publish a message, read what the result backend holds.

Two choices differ from plain ``send_task().get()``, each for a measured reason. Publishing does
not subscribe to the result first: with Redis down that subscription alone blocks for 19 s. And
results are looked up; pub/sub only says when to look, for its lost notice would be a lost answer.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from celery.exceptions import BackendError, NotRegistered
from kombu.exceptions import KombuError
from kombu.utils.url import maybe_sanitize_url
from redis.exceptions import RedisError

from innkeeper.contract import CONTROL_QUEUE
from innkeeper.errors import BrokerUnavailable, InnkeeperError, InternalError, ServiceError
from innkeeper.notices import Listeners, Notices

# A query that nobody fetched in this time is dropped by the worker. Much longer than any answer is
# waited for, since the worker compares it with its own clock.
QUERY_EXPIRES_S = 120

_UNREACHABLE = (KombuError, RedisError, BackendError, OSError)


@dataclass(frozen=True)
class Outcome:
    """What the result backend says of a task that ended: a result or an error, never both."""

    result: Any = None
    error: InnkeeperError | None = None

    def unwrap(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


def pauses(first_s: float, longest_s: float, growth: float = 1.5) -> Iterator[float]:
    """Yield ever longer pauses between polls: quick answers stay quick, long waits stay cheap.

    Args:
        first_s: the first pause.
        longest_s: the longest one.
        growth: how fast they grow; 1.005 notices an answer late by 0.5 % of the time waited.
    """
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(pause_s * growth, longest_s)


class Transport:
    """A Celery app of the client's own, of which nothing is seen outside.

    It is never the current app, so it lives in a process, or inside a task, of another Celery
    program without being mistaken for that program's.

    Args:
        broker_url: where requests are published.
        result_url: where outcomes and answers are read.
        timeout_s: how long one exchange may take, with either of them.
    """

    def __init__(self, broker_url: str, result_url: str, timeout_s: float) -> None:
        self.broker_url = broker_url
        self.result_url = result_url
        self.timeout_s = timeout_s
        self._app = _build_app(broker_url, result_url, timeout_s)
        self._listeners = Listeners()

    def publish(
        self,
        task: str,
        kwargs: Mapping[str, Any],
        *,
        task_id: UUID,
        shown_as: str | None = None,
        expires_s: float | None = None,
    ) -> None:
        """Put one message on the control queue.

        Args:
            task: a name of ``innkeeper.contract``.
            kwargs: its arguments, JSON.
            task_id: the id under which the outcome will be stored.
            shown_as: what Flower and logs show instead of the arguments.
            expires_s: after how long a worker may drop the message.

        Raises:
            BrokerUnavailable: within seconds; whether the message arrived is then not known.
        """
        is_request = expires_s is None
        amqp = self._app.amqp
        message = amqp.create_task_message(
            str(task_id),
            task,
            (),
            dict(kwargs),
            expires=expires_s,
            # None leaves it to the worker whether the task's own return value is stored.
            ignore_result=None,
            argsrepr="",
            kwargsrepr=shown_as,
            # Flower shows what was asked for, not the polling.
            create_sent_event=is_request,
        )
        try:
            try:
                self._send(task, message)
            except AttributeError:
                # kombu 5.7.0 trips over a pooled channel whose connection broke; it is gone now.
                self._send(task, message)
        except (*_UNREACHABLE, AttributeError) as exc:
            raise BrokerUnavailable(
                f"Redis at {maybe_sanitize_url(self.broker_url)} did not take the message {task}: "
                f"{_cause(exc)}.",
                {"task": task, "operation_id": str(task_id)} if is_request else {"task": task},
            ) from exc

    def _send(self, task: str, message: Any) -> None:
        with self._app.producer_or_acquire() as producer:
            self._app.amqp.send_task_message(producer, task, message, queue=CONTROL_QUEUE)

    def find_outcome(self, task_id: UUID) -> Outcome | None:
        """Return what is stored under a task id, or None while there is nothing final.

        Raises:
            BrokerUnavailable: when the result backend does not answer.
        """
        try:
            meta = self._app.backend.get_task_meta(str(task_id), cache=False)
        except _UNREACHABLE as exc:
            raise BrokerUnavailable(
                f"The result backend at {maybe_sanitize_url(self.result_url)} does not answer: "
                f"{_cause(exc)}."
            ) from exc
        match meta["status"]:
            case "SUCCESS":
                return Outcome(result=meta["result"])
            case "FAILURE":
                return Outcome(error=_typed(meta["result"]))
            case "REVOKED":
                return Outcome(
                    error=ServiceError(
                        "The message was dropped as expired or revoked before it was begun.",
                        {"hint": "Compare the clocks of this machine and of the control worker."},
                    )
                )
            case _:
                return None

    def listening(self, task_id: UUID) -> AbstractContextManager[Notices]:
        """Return what says when an outcome is stored under a task id."""
        backend = self._app.backend
        return self._listeners.listening(backend.client, backend.get_key_for_task(str(task_id)))

    def ask(self, task: str, kwargs: Mapping[str, Any], timeout_s: float | None = None) -> Any:
        """Ask the control worker and return its answer.

        Args:
            task: a query of ``innkeeper.contract``.
            kwargs: its arguments, JSON.
            timeout_s: a shorter time than the transport's own.

        Raises:
            BrokerUnavailable: when Redis does not answer.
            ServiceError: when no control worker answers in time.
            InnkeeperError: whatever the control worker answered.
        """
        query_id = uuid4()
        limit_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        deadline = time.monotonic() + limit_s
        self.publish(task, kwargs, task_id=query_id, expires_s=QUERY_EXPIRES_S)
        for pause_s in pauses(0.002, 0.05):
            outcome = self.find_outcome(query_id)
            if outcome is not None:
                self._forget(query_id)
                return outcome.unwrap()
            if time.monotonic() >= deadline:
                break
            time.sleep(pause_s)
        raise ServiceError(
            f"No control worker answered {task} within {limit_s:.2g} s.",
            {
                "task": task,
                "hint": "Check that a worker consumes the queue control: innkeeper doctor.",
            },
        )

    @contextmanager
    def reading(self, stream: str) -> Iterator["StreamReader"]:
        """Yield a reader of a stream in the broker's Redis, with a connection of its own.

        Args:
            stream: the stream's key.

        Raises:
            BrokerUnavailable: there, or while it reads, when Redis does not answer.
        """
        try:
            with self._app.connection_for_read() as connection:
                yield StreamReader(connection.default_channel.client, stream)
        except _UNREACHABLE as exc:
            raise BrokerUnavailable(
                f"Redis at {maybe_sanitize_url(self.broker_url)} does not answer: {_cause(exc)}."
            ) from exc

    def ping_broker(self) -> None:
        """Open a new connection to the broker and close it again.

        Raises:
            BrokerUnavailable: when that fails, within the time-out.
        """
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=self.timeout_s)
                connection.default_channel.client.ping()
        except _UNREACHABLE as exc:
            raise BrokerUnavailable(
                f"Redis at {maybe_sanitize_url(self.broker_url)} does not answer: {_cause(exc)}."
            ) from exc

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._app.close()

    def _forget(self, query_id: UUID) -> None:
        # Answers would otherwise pile up for a day, two a second for everyone who watches.
        try:
            self._app.backend.delete(self._app.backend.get_key_for_task(str(query_id)))
        except (*_UNREACHABLE, AttributeError):
            return  # Left for the backend's own expiry.


class StreamReader:
    """Reads entries of one stream; made by `Transport.reading`."""

    def __init__(self, redis: Any, stream: str) -> None:
        self._redis = redis
        self._stream = stream

    def read_after(self, after: int, *, block_s: float, limit: int) -> list[dict[str, bytes]]:
        """Return the entries behind ``<after>-0``, in order; none when none came in time.

        Args:
            after: the first half of an entry's id.
            block_s: how long to wait for the first one; less than a socket's time-out.
            limit: how many at most.
        """
        answer = self._redis.xread(
            {self._stream: f"{after}-0"}, count=limit, block=max(1, int(block_s * 1000))
        )
        found = answer.values() if isinstance(answer, dict) else [pair[1] for pair in answer or ()]
        return [
            {_text(name): value for name, value in fields.items()}
            for entries in found
            for _, fields in entries
            if fields
        ]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _build_app(broker_url: str, result_url: str, timeout_s: float) -> Any:
    socket_timeout_s = min(timeout_s, 3.0)
    app = Celery("innkeeper-client", broker=broker_url, backend=result_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_default_queue=CONTROL_QUEUE,
        task_send_sent_event=True,
        broker_connection_timeout=socket_timeout_s,
        # Without a socket time-out a Redis that is reachable but silent blocks for ever.
        broker_transport_options={
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": socket_timeout_s,
            "socket_keepalive": True,
            "health_check_interval": 15,
        },
        # The second try is for a pooled connection that a restarted Redis has forgotten.
        task_publish_retry_policy={
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        redis_socket_timeout=socket_timeout_s,
        redis_socket_connect_timeout=socket_timeout_s,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=15,
        timezone="UTC",
    )
    return app


def _typed(error: Any) -> InnkeeperError:
    """Make one of our errors of whatever a worker stored.

    A class of a newer release arrives as a look-alike that Celery made up; it keeps its sentence
    and its facts.
    """
    if isinstance(error, InnkeeperError):
        return error
    if isinstance(error, NotRegistered):
        return ServiceError(
            f"The control worker does not know the task {error}.",
            {"hint": "Upgrade the control worker to the client's release."},
        )
    match getattr(error, "args", ()):
        case (str(message), dict(details)):
            return InnkeeperError(message, details)
        case _:
            return InternalError(
                f"The worker failed with {type(error).__name__}: {error}",
                {"exception": type(error).__name__},
            )


def _cause(exc: BaseException) -> str:
    return str(exc).strip().rstrip(".") or type(exc).__name__
