"""Asks for an operation and waits for it, as Innkeeper's client or as any Celery program."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from celery.result import AsyncResult

from innkeeper import Innkeeper
from innkeeper.errors import InnkeeperError, WaitTimeout
from innkeeper.operation import Operation


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


def send_typed(client: Innkeeper, ask: Ask, *, key: str | None = None) -> Operation:
    """Send a request through Innkeeper's client.

    Args:
        client: through which.
        ask: the request.
        key: its idempotency key.
    """
    verbs: dict[str, Callable[..., Operation]] = {
        "spawn": client.spawn,
        "live_migrate": client.migrate,
        "check_migration": client.check_migration,
        "start": client.start,
        "stop": client.stop,
        "reboot": client.reboot,
        "delete": client.delete,
        "hydrate": client.hydrate,
    }
    if ask.kind == "prewarm":
        return client.prewarm(**ask.fields, idempotency_key=key)
    if ask.kind == "drain":
        return client.drain(**ask.fields, idempotency_key=key)
    if ask.kind == "evacuate":
        return client.evacuate(**ask.fields, idempotency_key=key)
    subject = {"name": ask.guest} if ask.kind == "spawn" else {"instance": ask.guest}
    return verbs[ask.kind](**subject, **ask.fields, idempotency_key=key)


def send_plainly(app: Celery, ask: Ask, task_id: UUID, **more: str | None) -> AsyncResult[Any]:
    """Send a request as any Celery program would, and return what it waits for.

    Args:
        app: which program.
        ask: the request.
        task_id: under which its answer will be found.
        more: keyword arguments of the task.
    """
    kwargs: dict[str, Any] = dict(more)
    if ask.kind == "prewarm":
        kwargs["spec"] = ask.fields
        name = "innkeeper.image.prewarm"
        return app.send_task(name, kwargs=kwargs, task_id=str(task_id), queue="control")
    if ask.kind == "evacuate":
        # Who vouches for a death must say who he is.
        kwargs |= {"spec": ask.fields, "requested_by": "somebody else's program"}
        name = "innkeeper.host.evacuate"
        return app.send_task(name, kwargs=kwargs, task_id=str(task_id), queue="control")
    if ask.kind == "drain":
        name, kwargs = "innkeeper.host.drain", {**kwargs, **ask.fields}
        return app.send_task(name, kwargs=kwargs, task_id=str(task_id), queue="control")
    if ask.kind == "spawn":
        kwargs["spec"] = {"name": ask.guest, **ask.fields}
    else:
        kwargs["instance"] = ask.guest
        if ask.fields:
            kwargs["policy"] = ask.fields
    return app.send_task(
        f"innkeeper.instance.{ask.kind}", kwargs=kwargs, task_id=str(task_id), queue="control"
    )


def ask_typed(client: Innkeeper, ask: Ask, *, timeout_s: float) -> Waiter:
    """Send a request through Innkeeper's client and wait with it."""
    operation = send_typed(client, ask)
    return Waiter(operation.id, lambda: operation.wait(timeout_s))


def ask_plainly(app: Celery, ask: Ask, *, timeout_s: float) -> Waiter:
    """Send a request as any Celery program would, and wait for its AsyncResult."""
    answer = send_plainly(app, ask, task_id := uuid4())
    return Waiter(task_id, lambda: dict(answer.get(timeout=timeout_s)))


def plain_celery(broker_url: str, result_url: str) -> Celery:
    """Return a Celery application that knows nothing of Innkeeper."""
    app = Celery("somebody-elses", broker=broker_url, backend=result_url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        redis_socket_timeout=5,
        result_backend_transport_options={"retry_policy": {"timeout": 3}},
    )
    return app
