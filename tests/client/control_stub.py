"""A control worker that keeps its word about the wire, and nothing else.

A real Celery app on a real Redis; the operations are dictionaries that end by the clock. What a
request does is chosen by the guest's name:

    no-host     is refused at the door: no operation is ever made
    dies        fails in its second step, and is undone
    slow        runs until it is cancelled
    quiet       ends, but its outcome is never stored in the result backend
    watched     goes on with every look at it, whatever the clock says; nor is its outcome stored
"""

import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore
from nacl.public import PrivateKey

from innkeeper import contract
from innkeeper.errors import Cancelled, GuestDied, NoHostFits, NotFound
from innkeeper.sealing import encode_public_key

F = TypeVar("F", bound=Callable[..., Any])

RUN_S = 0.6
WATCHED_LOOKS = 6
STEPS = ("fetch_image", "define", "start")


class Control:
    def __init__(self, broker_url: str, result_url: str) -> None:
        self.received: list[tuple[str, str, dict[str, Any]]] = []
        self.operations: dict[str, dict[str, Any]] = {}
        self.lost = 0
        self.secret_key = PrivateKey.generate()
        self.looks: Counter[str] = Counter()
        self.app = Celery("control", broker=broker_url, backend=result_url, set_as_current=False)
        self.app.conf.update(
            task_serializer="json",
            accept_content=["json"],
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
        )
        for name in contract.REQUEST_TASKS:
            self._register_request(name)
        self._register_queries()

    @contextmanager
    def running(self) -> Iterator[None]:
        self.app.amqp.queues.select_add(contract.CONTROL_QUEUE)
        with start_worker(
            self.app,
            pool="threads",
            concurrency=4,
            loglevel="CRITICAL",
            perform_ping_check=False,
            queues=[contract.CONTROL_QUEUE],
            shutdown_timeout=10,
        ):
            yield

    def requests(self, operation_id: Any) -> list[tuple[str, dict[str, Any]]]:
        return [(task, kw) for task, known, kw in self.received if known == str(operation_id)]

    def await_request(self, operation_id: Any) -> tuple[str, dict[str, Any]]:
        deadline = time.monotonic() + 60
        while not (arrived := self.requests(operation_id)):
            assert time.monotonic() < deadline, "the request has not arrived"
            time.sleep(0.02)
        return arrived[0]

    def _task(self, name: str, **options: Any) -> Callable[[F], F]:
        def register(function: F) -> F:
            # Shared tasks would turn up in the client's app, which lives in this process too.
            self.app.task(function, name=name, shared=False, **options)
            return function

        return register

    def _register_request(self, task: str) -> None:
        @self._task(task, bind=True)
        def request(bound: Any, **kwargs: Any) -> Any:
            operation_id = bound.request.id
            try:
                take(operation_id, kwargs)
            finally:
                # Last: whoever sees the request may count on the operation.
                self.received.append((task, operation_id, kwargs))
            raise Ignore

        def take(operation_id: str, kwargs: dict[str, Any]) -> None:
            if self.lost > 0:
                self.lost -= 1
                return
            name = kwargs.get("instance") or kwargs["spec"]["name"]
            if name == "no-host":
                refusals = [{"host": "hv-a", "code": "disabled", "message": "is disabled"}]
                raise NoHostFits("No host fits no-host.", {"refusals": refusals})
            if operation_id not in self.operations:
                self._begin(operation_id, task, name, kwargs)

    def _begin(self, operation_id: str, task: str, name: str, kwargs: dict[str, Any]) -> None:
        self.operations[operation_id] = {
            "kind": task.rsplit(".", 1)[1],
            "name": name,
            "began": time.monotonic(),
            "created_at": datetime.now(UTC).isoformat(),
            "cancelled": False,
            "requested_by": kwargs.get("requested_by"),
            "reason": kwargs.get("reason"),
        }
        if name not in {"quiet", "slow", "watched"}:
            threading.Timer(RUN_S, self._store, [operation_id]).start()

    def _store(self, operation_id: str) -> None:
        view = self.view(operation_id)
        if view["state"] == "succeeded":
            self.app.backend.store_result(operation_id, view["result"], "SUCCESS")
        else:
            self.app.backend.store_result(operation_id, _died(), "FAILURE")

    def view(self, operation_id: str) -> dict[str, Any]:
        known = self.operations.get(operation_id)
        if known is None:
            raise NotFound(f"There is no operation {operation_id}.", {"what": "operation"})
        part = (time.monotonic() - known["began"]) / RUN_S
        if known["name"] == "watched":
            part = self.looks[operation_id] / WATCHED_LOOKS
        state, error, result = "running", None, None
        if known["cancelled"]:
            state, error = "cancelled", Cancelled("Cancelled by tests.").to_wire()
        elif known["name"] == "dies" and part >= 0.5:
            state, error = "failed", _died().to_wire()
        elif known["name"] == "slow":
            part = min(part, 0.5)
        elif part >= 1:
            state, result = "succeeded", {"name": known["name"], "state": "active", "host": "hv-a"}
        steps = [self._step(i, name, part, state, error) for i, name in enumerate(STEPS)]
        return {
            "id": operation_id,
            "kind": known["kind"],
            "state": state,
            "instance_name": known["name"],
            "requested_by": known["requested_by"],
            "reason": known["reason"],
            "cancel_requested": known["cancelled"],
            # Jumps back now and then, as it must not for the reader.
            "progress": {
                "step": "define",
                "fraction": min(part, 1) * (1 - 0.3 * (int(part * 9) % 2)),
            },
            "result": result,
            "error": error,
            "created_at": known["created_at"],
            "started_at": known["created_at"],
            "finished_at": datetime.now(UTC).isoformat() if state != "running" else None,
            "steps": steps,
            "from_a_newer_release": 1,
        }

    @staticmethod
    def _step(position: int, name: str, part: float, state: str, error: Any) -> dict[str, Any]:
        begins, ends = position / len(STEPS), (position + 1) / len(STEPS)
        word = "done" if part >= ends else "running" if part >= begins else "queued"
        if state == "failed":
            word = ("done", "failed", "skipped")[position]
        note = {"at": "2026-01-02T03:04:05.678+00:00", "message": "adopted", "attempt": 2}
        return {
            "position": position,
            "name": name,
            "host": "hv-a",
            "state": word,
            "attempt": 2 if position == 0 else 1,
            "elapsed_ms": 12.5,
            "error": error if word == "failed" else None,
            "log": [note] if position == 0 else [],
        }

    def _register_queries(self) -> None:
        @self._task(contract.OPERATION_SHOW)
        def show(operation_id: str) -> Any:
            self.looks[operation_id] += 1
            return self.view(operation_id)

        @self._task(contract.OPERATION_LIST)
        def operations(active: bool, limit: int, instance: str | None) -> Any:
            views = [self.view(each) for each in reversed(list(self.operations))]
            wanted = [v for v in views if not active or v["state"] == "running"]
            return [v for v in wanted if instance in {None, v["instance_name"]}][:limit]

        @self._task(contract.OPERATION_CANCEL)
        def cancel(operation_id: str, requested_by: str) -> Any:
            self.view(operation_id)
            self.operations[operation_id]["cancelled"] = True
            return self.view(operation_id)

        @self._task(contract.SYSTEM_PUBLIC_KEY)
        def public_key() -> Any:
            return {"public_key": encode_public_key(bytes(self.secret_key.public_key))}

        @self._task(contract.INSTANCE_SHOW)
        def instance(instance: str) -> Any:
            if instance == "vm-0":
                raise NotFound("There is no instance vm-0.", {"what": "instance", "name": "vm-0"})
            if instance == "vm-bug":
                raise ZeroDivisionError("division by zero")
            return _instance(instance)

        @self._task(contract.INSTANCE_LIST)
        def instances() -> Any:
            return [_instance("vm-1")]

        @self._task(contract.HOST_LIST)
        def hosts() -> Any:
            return [_host("hv-a")]

        @self._task(contract.HOST_ENABLE)
        def enable(host: str, requested_by: str) -> Any:
            return _host(host)

        @self._task(contract.HOST_DISABLE)
        def disable(host: str, reason: str, requested_by: str) -> Any:
            return _host(host) | {
                "is_enabled": False,
                "disabled_reason": reason,
                "disabled_by": requested_by,
            }

        @self._task(contract.SYSTEM_CHECK)
        def check() -> Any:
            return {"parts": [{"part": "database", "ok": True, "message": "answers", "hint": ""}]}


def _died() -> GuestDied:
    return GuestDied("The guest ended while it booted.", {"host": "hv-a", "step": "define"})


def _instance(name: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        "name": name,
        "state": "active",
        "power_state": "running",
        "host": "hv-a",
        "vcpus": 1,
        "memory_mib": 256,
        "disk_gib": 1,
        "pool": "local",
        "image": "file:///srv/noble.qcow2",
        "epoch": 1,
        "metadata": {"team": "blue"},
        "disks": [_disk("vda", "root", "local"), _disk("vdb", "data", "shared")],
        "created_at": now,
        "updated_at": now,
    }


def _disk(target: str, kind: str, pool: str) -> dict[str, Any]:
    file = {"bus": "virtio", "format": "raw", "size_bytes": 2**20}
    return {"target": target, "kind": kind, "pool": pool, **file}


def _host(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        "is_up": True,
        "is_enabled": True,
        "heartbeat_at": datetime.now(UTC).isoformat(),
    }


if __name__ == "__main__":
    with Control(*sys.argv[1:]).running():
        threading.Event().wait()
