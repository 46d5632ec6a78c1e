"""The names that stand on the wire: tasks, queues, and how an operation's id is made.

Names are only ever added. Clients of one release talk to workers of another, and a task name a
worker does not know is a message dropped, so none is renamed and none is derived from a module.
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

CONTROL_QUEUE: Final = "control"
HOST_QUEUE_PREFIX: Final = "host."

# Requests: each becomes an operation, whose id is the Celery task id.
INSTANCE_SPAWN: Final = "innkeeper.instance.spawn"
INSTANCE_LIVE_MIGRATE: Final = "innkeeper.instance.live_migrate"
INSTANCE_CHECK_MIGRATION: Final = "innkeeper.instance.check_migration"
INSTANCE_START: Final = "innkeeper.instance.start"
INSTANCE_STOP: Final = "innkeeper.instance.stop"
INSTANCE_REBOOT: Final = "innkeeper.instance.reboot"
INSTANCE_DELETE: Final = "innkeeper.instance.delete"
INSTANCE_HYDRATE: Final = "innkeeper.instance.hydrate"
IMAGE_PREWARM: Final = "innkeeper.image.prewarm"
HOST_EVACUATE: Final = "innkeeper.host.evacuate"
HOST_DRAIN: Final = "innkeeper.host.drain"

REQUEST_TASKS: Final = frozenset(
    {
        INSTANCE_SPAWN,
        INSTANCE_LIVE_MIGRATE,
        INSTANCE_CHECK_MIGRATION,
        INSTANCE_START,
        INSTANCE_STOP,
        INSTANCE_REBOOT,
        INSTANCE_DELETE,
        INSTANCE_HYDRATE,
        IMAGE_PREWARM,
        HOST_EVACUATE,
        HOST_DRAIN,
    }
)

# Queries: ordinary tasks that answer in milliseconds and leave nothing behind.
INSTANCE_SHOW: Final = "innkeeper.instance.show"
INSTANCE_LIST: Final = "innkeeper.instance.list"
HOST_LIST: Final = "innkeeper.host.list"
HOST_ENABLE: Final = "innkeeper.host.enable"
HOST_DISABLE: Final = "innkeeper.host.disable"
HOST_EVACUATION_PLAN: Final = "innkeeper.host.evacuation_plan"
HOST_PLAN_DRAIN: Final = "innkeeper.host.plan_drain"
HOST_UNDRAIN: Final = "innkeeper.host.undrain"
GROUP_LIST: Final = "innkeeper.group.list"
IMAGE_LIST: Final = "innkeeper.image.list"
EVENT_LIST: Final = "innkeeper.event.list"
MIGRATION_SET: Final = "innkeeper.migration.set"
MIGRATION_FORCE_COMPLETE: Final = "innkeeper.migration.force_complete"
OPERATION_SHOW: Final = "innkeeper.operation.show"
OPERATION_LIST: Final = "innkeeper.operation.list"
OPERATION_CANCEL: Final = "innkeeper.operation.cancel"
SYSTEM_CHECK: Final = "innkeeper.system.check"
SYSTEM_PUBLIC_KEY: Final = "innkeeper.system.public_key"

QUERY_TASKS: Final = frozenset(
    {
        INSTANCE_SHOW,
        INSTANCE_LIST,
        HOST_LIST,
        HOST_ENABLE,
        HOST_DISABLE,
        HOST_EVACUATION_PLAN,
        HOST_PLAN_DRAIN,
        HOST_UNDRAIN,
        GROUP_LIST,
        IMAGE_LIST,
        EVENT_LIST,
        MIGRATION_SET,
        MIGRATION_FORCE_COMPLETE,
        OPERATION_SHOW,
        OPERATION_LIST,
        OPERATION_CANCEL,
        SYSTEM_CHECK,
        SYSTEM_PUBLIC_KEY,
    }
)

IDEMPOTENCY_NAMESPACE: Final = UUID("6a3f0c52-7d0e-5b43-9d1a-3c1b6a1e8f27")


def host_queue(host: str) -> str:
    """Return the name of the queue that only this host's worker consumes."""
    return f"{HOST_QUEUE_PREFIX}{host}"


def operation_id_for(
    idempotency_key: str | None, task: str = "", fields: Mapping[str, Any] | None = None
) -> UUID:
    """Choose the id of a new operation.

    Args:
        idempotency_key: the caller's own name for the request, if it has one.
        task: the task's name.
        fields: what is asked for; JSON.

    Returns:
        The same id for the same key and request, always and everywhere, so that a request sent
        twice is one operation; a misused key has an id of its own, under which it is refused.
        Without a key, a random id.
    """
    if idempotency_key is None:
        return uuid4()
    request = json.dumps([idempotency_key, task, fields or {}], sort_keys=True)
    return uuid5(IDEMPOTENCY_NAMESPACE, request)
