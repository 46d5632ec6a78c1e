"""The two kinds of programs that ask Innkeeper: with the typed client, and with Celery alone."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID, uuid4

from celery import Celery
from celery.exceptions import BackendError
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import AsyncResult
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from innkeeper import Innkeeper
from innkeeper.errors import BrokerUnavailable, InnkeeperError, NotFound
from innkeeper.operation import Operation
from tests.chaos.asking import Ask, send_plainly, send_typed

NOT_SENT = "broker_unavailable"
NO_ANSWER = "no_answer"
SUCCEEDED = "succeeded"
LOOK_EVERY_S = 5.0
_UNREACHABLE = (KombuError, RedisError, BackendError, OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller was told in the end.

    Args:
        code: ``succeeded``, an error's code, or `NO_ANSWER`.
        result: of a success.
        error: of a failure, in its JSON form.
    """

    code: str
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def of_error(cls, error: InnkeeperError) -> "Answer":
        """Return the answer that an exception is."""
        return cls(error.code, error=error.to_wire())


@dataclass(slots=True)
class Asked:
    """One request of one caller, and its answer once there is one.

    Args:
        way: ``typed`` or ``plain``.
        is_rival: somebody else asked while the guest was busy.
        handle: the typed client's operation.
        leaked: exceptions that are none of Innkeeper's, which a typed caller must never see.
    """

    guest: str
    verb: str
    way: str
    task_id: UUID
    is_rival: bool = False
    is_cancelled: bool = False
    sent_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    answer: Answer | None = None
    handle: Operation | None = None
    leaked: list[str] = field(default_factory=list)

    def end(self, answer: Answer) -> None:
        """Note the answer."""
        self.answer, self.ended_at = answer, time.time()

    def __str__(self) -> str:
        code = self.answer.code if self.answer else "…"
        return f"{self.verb} {self.guest} ({self.way} {self.task_id}) → {code}"

    @property
    def message(self) -> str:
        """What a failure said; empty for anything else."""
        error = self.answer.error if self.answer else None
        return str((error or {}).get("message", ""))


class Caller(Protocol):
    """Sends requests and waits for their outcomes."""

    @property
    def way(self) -> str:
        """``typed`` or ``plain``."""
        ...

    def send(self, verb: str, guest: str, fields: dict[str, Any], key: str | None) -> Asked:
        """Send a request; one that could not be sent is answered already."""
        ...

    def wait(self, asked: Asked, timeout_s: float, is_hopeless: Callable[[Asked], bool]) -> None:
        """Wait for the answer, and note it.

        Args:
            asked: what was sent.
            timeout_s: how long at most.
            is_hopeless: asked now and then whether no answer can come any more.
        """
        ...


class TypedCaller:
    """A service that uses the package ``innkeeper``."""

    way = "typed"

    def __init__(self, client: Innkeeper) -> None:
        self._client = client

    def send(self, verb: str, guest: str, fields: dict[str, Any], key: str | None) -> Asked:
        """See `Caller`."""
        ask = Ask(verb, guest, fields)
        sent_at = time.time()
        leaked: list[str] = []
        try:
            try:
                operation = send_typed(self._client, ask, key=key)
            except AttributeError as exc:
                # Once more: a caller who gives up here would hide what comes after.
                leaked.append("".join(traceback.format_exception(exc)[-6:]))
                operation = send_typed(self._client, ask, key=key)
        except BrokerUnavailable as exc:
            # It may have arrived all the same, and its id is told.
            task_id = UUID(exc.details["operation_id"])
            asked = Asked(guest, verb, self.way, task_id, sent_at=sent_at, leaked=leaked)
            asked.end(Answer.of_error(exc))
            return asked
        return Asked(
            guest, verb, self.way, operation.id, sent_at=sent_at, handle=operation, leaked=leaked
        )

    def wait(self, asked: Asked, timeout_s: float, is_hopeless: Callable[[Asked], bool]) -> None:
        """See `Caller`; the typed client sends a lost request again, so nothing is hopeless."""
        assert asked.handle is not None
        give_up_at = time.monotonic() + timeout_s
        while asked.answer is None:
            try:
                left_s = max(0.1, give_up_at - time.monotonic())
                asked.end(Answer(SUCCEEDED, result=asked.handle.wait(left_s)))
            except InnkeeperError as exc:
                asked.end(Answer.of_error(exc))
            except Exception as exc:
                asked.leaked.append("".join(traceback.format_exception(exc)[-6:]))


class PlainCaller:
    """A program that knows Celery, and Innkeeper only by the names of its tasks."""

    way = "plain"

    def __init__(self, broker_url: str, result_url: str) -> None:
        self._urls = {"broker": broker_url, "backend": result_url}
        self._app = self._build()

    def send(self, verb: str, guest: str, fields: dict[str, Any], key: str | None) -> Asked:
        """See `Caller`."""
        asked = Asked(guest, verb, self.way, uuid4())
        try:
            send_plainly(
                self._app,
                Ask(verb, guest, fields),
                asked.task_id,
                idempotency_key=key,
                requested_by="plain",
            )
        except _UNREACHABLE as exc:
            asked.end(Answer(NOT_SENT, error={"message": str(exc)}))
        return asked

    def wait(self, asked: Asked, timeout_s: float, is_hopeless: Callable[[Asked], bool]) -> None:
        """See `Caller`."""
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            began_at = time.monotonic()
            try:
                result = AsyncResult(str(asked.task_id), app=self._app).get(timeout=LOOK_EVERY_S)
            except InnkeeperError as exc:
                asked.end(Answer.of_error(exc))
                return
            except ResultTimeout:
                pass
            except _UNREACHABLE:
                # Celery's consumer of results gives up for good when Redis stays away.
                self._app.close()
                self._app = self._build()
                time.sleep(max(0.0, 0.5 - (time.monotonic() - began_at)))
            else:
                asked.end(Answer(SUCCEEDED, result=result))
                return
            if is_hopeless(asked):
                break
        asked.end(Answer(NO_ANSWER))

    def _build(self) -> Celery:
        app = Celery("plain-caller", **self._urls, set_as_current=False)
        # As anybody would who has read Celery's page on Redis; it waits for ever otherwise.
        app.conf.update(
            broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 3},
            redis_socket_timeout=5,
            redis_socket_connect_timeout=3,
            task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1},
        )
        return app


def cancel(client: Innkeeper, asked: Asked) -> str:
    """Ask for an operation to be cancelled; return what came of the wish."""
    try:
        view = client.operation(asked.task_id).cancel()
    except NotFound:
        return "not found"
    except InnkeeperError as exc:
        return exc.code
    except Exception as exc:
        asked.leaked.append("".join(traceback.format_exception(exc)[-6:]))
        return "leaked"
    asked.is_cancelled = True
    return str(view.state)
