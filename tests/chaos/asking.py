"""Asks for an operation and waits for it, as Innkeeper's client or as any Celery program."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from celery import Celery

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError, WaitTimeout


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, not sent yet.

    Args:
        kind: of operation.
        guest: its name.
        fields: of the guest's specification, for a spawn; of the policy, for anything else.
    """

    kind: str
    guest: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a waiting client was told: a result, or the code of an error and its effect."""

    result: dict[str, Any] | None = None
    code: str | None = None
    effect: str | None = None


class Waiter:
    """A client that waits in a thread of its own, whatever dies meanwhile.

    Args:
        operation_id: the operation.
        wait: waits, and returns the operation's result or raises its error.
    """

    def __init__(self, operation_id: UUID, wait: Callable[[], dict[str, Any]]) -> None:
        self.operation_id = operation_id
        self._wait = wait
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._run, name="waiting client", daemon=True)
        self._thread.start()

    def find_outcome(self, timeout_s: float) -> Outcome | None:
        """Find what the client was told; None when it still waits."""
        self._thread.join(timeout_s)
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = Outcome(result=self._wait())
        except WaitTimeout:
            return
        except InnkeeperError as exc:
            self._outcome = Outcome(code=exc.code, effect=exc.effect.value)
        except Exception as exc:
            self._outcome = Outcome(code=f"not Innkeeper's: {exc!r}")


def ask_typed(client: Innkeeper, ask: Ask, *, timeout_s: float) -> Waiter:
    """Send a request through Innkeeper's client and wait with it."""
    send = {
        "spawn": client.spawn,
        "live_migrate": client.migrate,
        "start": client.start,
        "stop": client.stop,
        "reboot": client.reboot,
        "delete": client.delete,
    }[ask.kind]
    arguments: tuple[str, ...] = () if ask.kind == "spawn" else (ask.guest,)
    fields = {"name": ask.guest, **ask.fields} if ask.kind == "spawn" else ask.fields
    operation = send(*arguments, **fields)  # type: ignore[operator]
    return Waiter(operation.id, lambda: operation.wait(timeout_s))


def ask_plainly(app: Celery, ask: Ask, *, timeout_s: float) -> Waiter:
    """Send a request as any Celery program would, and wait for its AsyncResult."""
    if ask.kind == "spawn":
        kwargs: dict[str, Any] = {"spec": {"name": ask.guest, **ask.fields}}
    else:
        kwargs = {"instance": ask.guest, **({"policy": ask.fields} if ask.fields else {})}
    answer = app.send_task(
        f"innkeeper.instance.{ask.kind}", kwargs=kwargs, task_id=str(uuid4()), queue="control"
    )
    return Waiter(UUID(answer.id), lambda: dict(answer.get(timeout=timeout_s)))


def plain_celery(broker_url: str, result_url: str) -> Celery:
    """Return a Celery application that knows nothing of Innkeeper."""
    app = Celery("somebody-elses", broker=broker_url, backend=result_url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        redis_socket_timeout=5,
        result_backend_transport_options={"retry_policy": {"timeout": 3}},
    )
    return app
