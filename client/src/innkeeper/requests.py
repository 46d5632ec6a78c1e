"""What a caller asks for, checked and put into words before anything is sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import UUID, uuid4

from pydantic import Field, TypeAdapter, ValidationError

from innkeeper import contract
from innkeeper.addresses import show_address
from innkeeper.drain_types import DrainPolicy
from innkeeper.errors import InvalidRequest
from innkeeper.evacuation_types import EvacuationSpec
from innkeeper.image_types import PrewarmSpec
from innkeeper.messages import HostName, Name, Request
from innkeeper.sealing import without_sealing
from innkeeper.types import (
    InstanceSpec,
    MigrationPolicy,
    RebootPolicy,
    StopPolicy,
    parse_request,
)

R = TypeVar("R", bound=Request)

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_HOST_NAME: TypeAdapter[str] = TypeAdapter(HostName)
_KEY: TypeAdapter[str] = TypeAdapter(Annotated[str, Field(min_length=1, max_length=255)])


@dataclass(frozen=True)
class Message:
    """One request, ready to be sent, and to be sent again under the same id.

    Args:
        task: the task's name.
        operation_id: the id of the operation it becomes.
        kwargs: the task's arguments.
        shown_as: one line for Flower; holds no secrets.
    """

    task: str
    operation_id: UUID
    kwargs: dict[str, Any]
    shown_as: str


@dataclass(frozen=True)
class Asker:
    """Who asks, and why: stands in the operation's row.

    Args:
        requested_by: a person or a service.
        reason: free text.
        idempotency_key: the caller's name for this request; the same key is the same operation.
    """

    requested_by: str | None = None
    reason: str | None = None
    idempotency_key: str | None = None


def spawn(spec: InstanceSpec, asker: Asker) -> Message:
    """Ask for a new guest."""
    shown = f"{spec.name} image={_image_shown(spec.image)} {spec.vcpus} vcpu {spec.memory_mib} MiB"
    if spec.host is not None:
        shown += f" on {spec.host}"
    return _message(contract.INSTANCE_SPAWN, {"spec": _sent(spec)}, shown, asker)


def live_migrate(instance: str | UUID, policy: MigrationPolicy, asker: Asker) -> Message:
    """Ask for a running guest to be moved to another host."""
    target = instance_reference(instance)
    shown = f"{target} to {policy.dst or 'any host'} storage={policy.storage.value}"
    return _message(
        contract.INSTANCE_LIVE_MIGRATE,
        {"instance": target, "policy": _sent(policy)},
        shown,
        asker,
    )


def check_migration(instance: str | UUID, policy: MigrationPolicy, asker: Asker) -> Message:
    """Ask what would speak against moving a guest."""
    target = instance_reference(instance)
    return _message(
        contract.INSTANCE_CHECK_MIGRATION,
        {"instance": target, "policy": _sent(policy)},
        f"{target} to {policy.dst or 'any host'}",
        asker,
    )


def start(instance: str | UUID, asker: Asker) -> Message:
    """Ask for a stopped guest to run."""
    target = instance_reference(instance)
    return _message(contract.INSTANCE_START, {"instance": target}, target, asker)


def stop(instance: str | UUID, policy: StopPolicy, asker: Asker) -> Message:
    """Ask for a running guest to be off."""
    target = instance_reference(instance)
    how = "by force" if policy.force else f"grace {policy.grace_s:g} s"
    return _message(
        contract.INSTANCE_STOP,
        {"instance": target, "policy": _sent(policy)},
        f"{target} {how}",
        asker,
    )


def reboot(instance: str | UUID, policy: RebootPolicy, asker: Asker) -> Message:
    """Ask for a running guest to start anew."""
    target = instance_reference(instance)
    return _message(
        contract.INSTANCE_REBOOT,
        {"instance": target, "policy": _sent(policy)},
        f"{target} {policy.kind}",
        asker,
    )


def delete(instance: str | UUID, asker: Asker) -> Message:
    """Ask for a guest and its disks to be gone."""
    target = instance_reference(instance)
    return _message(contract.INSTANCE_DELETE, {"instance": target}, target, asker)


def hydrate(instance: str | UUID, asker: Asker) -> Message:
    """Ask for a guest to be made independent of the source it was booted from."""
    target = instance_reference(instance)
    return _message(contract.INSTANCE_HYDRATE, {"instance": target}, target, asker)


def prewarm(spec: PrewarmSpec, asker: Asker) -> Message:
    """Ask for an image to be in the caches of hosts."""
    where = "all hosts" if spec.hosts is None else f"{len(spec.hosts)} hosts"
    shown = f"image={_image_shown(spec.image)} on {where}"
    return _message(contract.IMAGE_PREWARM, {"spec": _sent(spec)}, shown, asker)


def evacuate(spec: EvacuationSpec, asker: Asker) -> Message:
    """Ask for a dead host's guests to run elsewhere."""
    how = "confirmed dead" if spec.confirmed_dead else "by the fencing hook"
    return _message(contract.HOST_EVACUATE, {"spec": _sent(spec)}, f"{spec.host} {how}", asker)


def drain(host: str, policy: DrainPolicy, asker: Asker) -> Message:
    """Ask for a host to be emptied of the guests that run there."""
    target = host_name(host)
    return _message(contract.HOST_DRAIN, {"host": target, "policy": _sent(policy)}, target, asker)


def host_name(host: str) -> str:
    """Return how a host is named on the wire.

    Raises:
        InvalidRequest: when it cannot be a host's name.
    """
    try:
        return _HOST_NAME.validate_python(host)
    except ValidationError:
        raise invalid("host", f"{host!r} cannot be the name of a host") from None


def instance_reference(instance: str | UUID) -> str:
    """Return how an instance is named on the wire.

    Raises:
        InvalidRequest: when it is neither a name nor a UUID.
    """
    if isinstance(instance, UUID):
        return str(instance)
    try:
        # A UUID in its usual form is within the rules for names; the control worker tells them
        # apart.
        return _NAME.validate_python(instance)
    except ValidationError:
        raise invalid(
            "instance",
            f"{instance!r} is neither a UUID nor a name of lower-case letters, digits and hyphens",
        ) from None


def merged(cls: type[R], given: R | Mapping[str, Any] | None, fields: Mapping[str, Any]) -> R:
    """Make a request of a ready object, of a mapping, of fields, or of one with the other.

    Raises:
        InvalidRequest: with every problem at once.
    """
    if isinstance(given, cls):
        if not fields:
            return given
        given = given.model_dump(exclude_unset=True)
    elif given is not None and not isinstance(given, Mapping):
        raise invalid("(request)", f"a {cls.__name__} or a mapping is wanted")
    return parse_request(cls, {**(given or {}), **fields})


def invalid(path: str, message: str) -> InvalidRequest:
    """Return the error for one wrong field."""
    return InvalidRequest(
        f"The request is not valid ({path}: {message}).",
        {"problems": [{"path": path, "message": message}]},
    )


def _message(task: str, kwargs: dict[str, Any], shown_as: str, asker: Asker) -> Message:
    key = asker.idempotency_key
    if key is not None:
        try:
            _KEY.validate_python(key, strict=True)
        except ValidationError as exc:
            raise invalid("idempotency_key", exc.errors()[0]["msg"]) from None
    common = {
        "idempotency_key": key,
        "requested_by": asker.requested_by,
        "reason": asker.reason,
        # Without a key every call has an id of its own.
        "call": None if key is None else uuid4().hex,
    }
    operation_id = contract.operation_id_for(key, task, without_sealing(kwargs))
    kwargs = kwargs | {name: value for name, value in common.items() if value is not None}
    return Message(task, operation_id, kwargs, shown_as)


def _sent(request: Request) -> dict[str, Any]:
    # What the caller left open is left to the control worker, and a field this release has added
    # does not disturb an older one.
    return request.model_dump(mode="json", exclude_unset=True)


def _image_shown(image: str) -> str:
    # The name alone: Flower has no room for more. What is secret goes before the path is split.
    shown = show_address(image).removesuffix("?<redacted>")
    return shown.rpartition("://")[2].rpartition("/")[2] or "?"
