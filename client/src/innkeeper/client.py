"""The door to Innkeeper for Python programs.

from innkeeper import Innkeeper

inn = Innkeeper("redis://localhost/0", "redis://localhost/1")
guest = inn.spawn(name="vm-1", image="file:///srv/images/noble.qcow2", vcpus=2).wait()
inn.migrate("vm-1", dst="hv-b").wait(timeout_s=600)
"""

import getpass
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

from innkeeper import contract, diagnosis, requests, sealing
from innkeeper.diagnosis import Part
from innkeeper.drain_types import DrainPlan, DrainPolicy
from innkeeper.errors import InvalidRequest
from innkeeper.evacuation_types import EvacuationPlan, EvacuationSpec
from innkeeper.event_following import EventFollower
from innkeeper.event_types import DEFAULT_STREAM, EventPage, EventView
from innkeeper.image_types import CachedImageView, PrewarmSpec
from innkeeper.operation import Operation
from innkeeper.requests import Asker, Message
from innkeeper.transport import Transport
from innkeeper.types import (
    GroupView,
    HostView,
    InstanceSpec,
    InstanceView,
    MigrationChange,
    MigrationPolicy,
    OperationView,
    RebootPolicy,
    StopPolicy,
)

_SCHEMES = frozenset({"redis", "rediss", "redis+socket", "socket", "sentinel"})


class Innkeeper:
    """Asks Innkeeper for work and for what it knows.

    Verbs return an ``Operation`` as soon as the request is sent; questions return their answer.
    Every call ends within seconds and fails with an ``InnkeeperError``. An object may be shared by
    threads, and used inside a task of another Celery program.

    Args:
        broker_url: Redis for requests; by default ``INNKEEPER_BROKER_URL``.
        result_url: Redis for outcomes; by default ``INNKEEPER_RESULT_URL``.
        requested_by: who asks, for the record; by default user@host.
        timeout_s: how long one question may take.
        event_stream: the stream of events in the broker's Redis; by default
            ``INNKEEPER_EVENT_STREAM``, and without that ``innkeeper:events``.
        public_key: the workers' key, to which secrets are sealed; by default
            ``INNKEEPER_PUBLIC_KEY``, and without that the one the workers tell.

    Raises:
        InvalidRequest: when an address is missing.
    """

    def __init__(
        self,
        broker_url: str | None = None,
        result_url: str | None = None,
        *,
        requested_by: str | None = None,
        timeout_s: float = 5,
        public_key: str | None = None,
        event_stream: str | None = None,
    ) -> None:
        self._event_stream = (
            event_stream or os.environ.get("INNKEEPER_EVENT_STREAM") or DEFAULT_STREAM
        )
        self.requested_by = requested_by or _whoami()
        self._public_key = public_key or os.environ.get("INNKEEPER_PUBLIC_KEY") or None
        self._transport = Transport(
            _address(broker_url, "INNKEEPER_BROKER_URL"),
            _address(result_url, "INNKEEPER_RESULT_URL"),
            timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to Redis."""
        self._transport.close()

    def spawn(
        self,
        spec: InstanceSpec | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> Operation:
        """Ask for a new guest.

        Args:
            spec: the guest; its fields may be given one by one instead, or beside it.
            idempotency_key: a name for this request; sent twice it is one operation.
            reason: free text for the record.
            **fields: of ``InstanceSpec``.

        Returns:
            The operation; its result is the instance.

        Raises:
            InvalidRequest: before anything is sent, with every wrong field.
            BrokerUnavailable: when Redis does not take the request.
        """
        asked = requests.merged(InstanceSpec, spec, fields)
        return self._send(requests.spawn(asked, self._asker(reason, idempotency_key)))

    def migrate(
        self,
        instance: str | UUID,
        policy: MigrationPolicy | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> Operation:
        """Ask for a running guest to be moved to another host without a stop.

        Args:
            instance: its name or UUID.
            policy: how; its fields, as ``dst``, may be given one by one.
            idempotency_key: see ``spawn``.
            reason: free text for the record.
            **fields: of ``MigrationPolicy``.

        Raises:
            InvalidRequest: before anything is sent.
            BrokerUnavailable: when Redis does not take the request.
        """
        asked = requests.merged(MigrationPolicy, policy, fields)
        asker = self._asker(reason, idempotency_key)
        return self._send(requests.live_migrate(instance, asked, asker))

    def check_migration(
        self,
        instance: str | UUID,
        policy: MigrationPolicy | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> Operation:
        """Ask what would speak against a migration; nothing is taken, claimed or moved.

        Its result says in ``can_migrate`` whether a destination passes, and in ``destinations`` of
        each ``{host, passed, checks}``, where a check is ``{check, passed, host}`` and, failed, has
        ``code``, ``message`` and ``hint``. ``MigrationCheck`` reads it. Without ``dst`` every host
        that might do is asked. Arguments and errors as for ``migrate``.
        """
        asked = requests.merged(MigrationPolicy, policy, fields)
        asker = self._asker(reason, idempotency_key)
        return self._send(requests.check_migration(instance, asked, asker))

    def migrate_set(
        self,
        target: str | UUID,
        changes: MigrationChange | Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> OperationView:
        """Change the policy of a migration that waits or runs; its host follows within a second.

        Args:
            target: the guest's name or UUID, or the operation's id.
            changes: what to change; its fields may be given one by one.
            **fields: of ``MigrationChange``.

        Raises:
            InvalidRequest: when the policy would contradict itself.
            NotFound: when the guest is not being migrated.
            StateConflict: when it is too late for that.
        """
        asked = requests.merged(MigrationChange, changes, fields)
        kwargs = {
            "target": requests.instance_reference(target),
            "changes": asked.model_dump(mode="json", exclude_none=True),
            "requested_by": self.requested_by,
        }
        return OperationView.model_validate(self._transport.ask(contract.MIGRATION_SET, kwargs))

    def migrate_force_complete(self, target: str | UUID) -> OperationView:
        """Have a running migration end now: by post-copy where it is allowed, else by a pause.

        Args:
            target: the guest's name or UUID, or the operation's id.

        Raises:
            NotFound: when the guest is not being migrated.
            StateConflict: when nothing is being copied yet, or it ends by itself.
        """
        kwargs = {
            "target": requests.instance_reference(target),
            "requested_by": self.requested_by,
        }
        answer = self._transport.ask(contract.MIGRATION_FORCE_COMPLETE, kwargs)
        return OperationView.model_validate(answer)

    def start(
        self,
        instance: str | UUID,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
    ) -> Operation:
        """Ask for a stopped guest to run. Arguments and errors as for ``migrate``."""
        return self._send(requests.start(instance, self._asker(reason, idempotency_key)))

    def stop(
        self,
        instance: str | UUID,
        policy: StopPolicy | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> Operation:
        """Ask for a guest to be off, politely first. Arguments and errors as for ``migrate``."""
        asked = requests.merged(StopPolicy, policy, fields)
        return self._send(requests.stop(instance, asked, self._asker(reason, idempotency_key)))

    def reboot(
        self,
        instance: str | UUID,
        policy: RebootPolicy | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> Operation:
        """Ask for a guest to start anew. Arguments and errors as for ``migrate``."""
        asked = requests.merged(RebootPolicy, policy, fields)
        return self._send(requests.reboot(instance, asked, self._asker(reason, idempotency_key)))

    def delete(
        self,
        instance: str | UUID,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
    ) -> Operation:
        """Ask for a guest and its disks to be gone. Arguments and errors as for ``migrate``."""
        return self._send(requests.delete(instance, self._asker(reason, idempotency_key)))

    def hydrate(
        self,
        instance: str | UUID,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
    ) -> Operation:
        """Ask for a guest to be made independent of the source it was booted from, now.

        Its host does so by itself after a while. Arguments and errors as for ``migrate``.
        """
        return self._send(requests.hydrate(instance, self._asker(reason, idempotency_key)))

    def prewarm(
        self,
        image: str,
        *,
        sha256: str | None = None,
        format: str = "qcow2",
        hosts: Sequence[str] | None = None,
        pool: str = "local",
        idempotency_key: str | None = None,
        reason: str | None = None,
    ) -> Operation:
        """Ask for an image to be in the caches of hosts before a guest needs it.

        Args:
            image: a ``file://`` or ``http(s)://`` URL, or an absolute path on the hosts.
            sha256: digest of the image file.
            format: ``qcow2`` or ``raw``.
            hosts: which; None for all that take guests and have the pool.
            pool: the storage pool whose cache is meant.
            idempotency_key: see ``spawn``.
            reason: free text for the record.

        Returns:
            The operation; its result says of each host whether the image was ``cached``, was
            ``existing``, or why it is an ``error``.

        Raises:
            InvalidRequest: before anything is sent.
            BrokerUnavailable: when Redis does not take the request.
        """
        given: dict[str, Any] = {"image": image, "sha256": sha256, "hosts": hosts}
        fields = {name: value for name, value in given.items() if value is not None}
        spec = requests.merged(PrewarmSpec, fields, {"image_format": format, "pool": pool})
        return self._send(requests.prewarm(spec, self._asker(reason, idempotency_key)))

    def images(self, host: str | None = None) -> list[CachedImageView]:
        """Return what is in the hosts' image caches, by host, those used last first.

        Args:
            host: only this one's; None for all.
        """
        answer = self._transport.ask(contract.IMAGE_LIST, {"host": host})
        return [CachedImageView.model_validate(each) for each in answer]

    def instance(self, instance: str | UUID) -> InstanceView:
        """Return one guest's record.

        Raises:
            NotFound: when there is none of that name or UUID.
        """
        kwargs = {"instance": requests.instance_reference(instance)}
        return InstanceView.model_validate(self._transport.ask(contract.INSTANCE_SHOW, kwargs))

    def instances(self) -> list[InstanceView]:
        """Return the records of all guests that are not deleted."""
        answer = self._transport.ask(contract.INSTANCE_LIST, {})
        return [InstanceView.model_validate(each) for each in answer]

    def hosts(self) -> list[HostView]:
        """Return the hosts as their workers last reported them."""
        answer = self._transport.ask(contract.HOST_LIST, {})
        return [HostView.model_validate(each) for each in answer]

    def groups(self) -> list[GroupView]:
        """Return the server groups that have members, and where these are."""
        answer = self._transport.ask(contract.GROUP_LIST, {})
        return [GroupView.model_validate(each) for each in answer]

    def enable_host(self, host: str) -> HostView:
        """Let the scheduler choose the host again."""
        kwargs = {"host": host, "requested_by": self.requested_by}
        return HostView.model_validate(self._transport.ask(contract.HOST_ENABLE, kwargs))

    def disable_host(self, host: str, reason: str) -> HostView:
        """Keep new guests off the host; those on it stay."""
        kwargs = {"host": host, "reason": reason, "requested_by": self.requested_by}
        return HostView.model_validate(self._transport.ask(contract.HOST_DISABLE, kwargs))

    def evacuate(
        self,
        host: str,
        *,
        confirmed_dead: str | None = None,
        concurrency: int | None = None,
        idempotency_key: str | None = None,
        reason: str | None = None,
    ) -> Operation:
        """Ask for the guests of a dead host to run elsewhere.

        Args:
            host: the dead one; it is fenced first, and stays closed until it is enabled by hand.
            confirmed_dead: who has seen that it is off, and how; without it the control workers'
                fencing hook is run.
            concurrency: how many guests are moved at once.
            idempotency_key: see ``spawn``.
            reason: free text for the record.

        Returns:
            The operation; its result says of each guest whether it was ``moved``, has ``failed``
            or was ``left``, and why.

        Raises:
            InvalidRequest: before anything is sent.
            BrokerUnavailable: when Redis does not take the request.
        """
        given: dict[str, Any] = {"confirmed_dead": confirmed_dead, "concurrency": concurrency}
        fields = {name: value for name, value in given.items() if value is not None}
        spec = requests.merged(EvacuationSpec, fields, {"host": host})
        return self._send(requests.evacuate(spec, self._asker(reason, idempotency_key)))

    def evacuation_plan(self, host: str) -> EvacuationPlan:
        """Return what an evacuation would do with each guest of a host; does nothing.

        Raises:
            NotFound: there is no such host.
        """
        answer = self._transport.ask(contract.HOST_EVACUATION_PLAN, {"host": host})
        return EvacuationPlan.model_validate(answer)

    def drain(
        self,
        host: str,
        policy: DrainPolicy | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> Operation:
        """Ask for a host to get no new guests, and for those that run there to be moved away.

        Args:
            host: its name.
            policy: how; its fields, as ``concurrency``, may be given one by one.
            idempotency_key: see ``spawn``.
            reason: free text for the record; shown wherever the host is refused.
            **fields: of ``DrainPolicy``.

        Returns:
            The operation; that of the running drain if the host is being drained already. Its
            result has a line for each guest.

        Raises:
            InvalidRequest: before anything is sent.
            BrokerUnavailable: when Redis does not take the request.
        """
        asked = requests.merged(DrainPolicy, policy, fields)
        return self._send(requests.drain(host, asked, self._asker(reason, idempotency_key)))

    def plan_drain(
        self, host: str, policy: DrainPolicy | Mapping[str, Any] | None = None, **fields: Any
    ) -> DrainPlan:
        """Return which guest a drain would move where, and which it could not; changes nothing.

        Raises:
            NotFound: there is no such host.
        """
        asked = requests.merged(DrainPolicy, policy, fields)
        kwargs = {
            "host": requests.host_name(host),
            "policy": asked.model_dump(mode="json", exclude_unset=True),
        }
        return DrainPlan.model_validate(self._transport.ask(contract.HOST_PLAN_DRAIN, kwargs))

    def undrain(self, host: str) -> HostView:
        """Let a drained host receive guests again; what an operator has disabled stays so.

        Raises:
            NotFound: there is no such host.
            Conflict: its drain has not ended.
        """
        kwargs = {"host": requests.host_name(host), "requested_by": self.requested_by}
        return HostView.model_validate(self._transport.ask(contract.HOST_UNDRAIN, kwargs))

    def operation(self, operation_id: str | UUID) -> Operation:
        """Return a handle on an operation that somebody sent. Asks nothing yet.

        Raises:
            InvalidRequest: when it is not a UUID.
        """
        try:
            known = UUID(str(operation_id))
        except ValueError:
            raise requests.invalid("operation_id", f"{operation_id!r} is not a UUID") from None
        return Operation(self._transport, known, requested_by=self.requested_by)

    def operations(
        self, *, active: bool = False, limit: int = 50, instance: str | UUID | None = None
    ) -> list[OperationView]:
        """Return operations, the newest first.

        Args:
            active: only those that have not ended.
            limit: how many at most.
            instance: only those of this guest.
        """
        kwargs: dict[str, Any] = {"active": active, "limit": limit, "instance": None}
        if instance is not None:
            kwargs["instance"] = requests.instance_reference(instance)
        answer = self._transport.ask(contract.OPERATION_LIST, kwargs)
        return [OperationView.model_validate(each) for each in answer]

    def events(
        self, after: int | None = None, *, limit: int = 100, instance: str | UUID | None = None
    ) -> EventPage:
        """Return what has happened, from Postgres; in the order in which it did.

        Args:
            after: the id behind which to begin; None for the newest events.
            limit: how many at most, up to 1000.
            instance: only of this guest; a name also finds guests that are deleted.
        """
        kwargs: dict[str, Any] = {"after": after, "limit": limit, "instance": None}
        if instance is not None:
            kwargs["instance"] = requests.instance_reference(instance)
        return EventPage.model_validate(self._transport.ask(contract.EVENT_LIST, kwargs))

    def follow_events(
        self, after: int | None = None, *, patience_s: float = 300
    ) -> Iterator[EventView]:
        """Yield every event once, in order and within about a second, without end.

        Keep the id of the last event that was dealt with, and begin with it next time: nothing is
        missed meanwhile.

        Args:
            after: the id of the last event that is known; None to begin with what happens now.
            patience_s: how long Redis and the control worker may be away before that is an error.

        Raises:
            EventsLost: events behind ``after`` are no longer kept.
            BrokerUnavailable, ServiceError: they were away for longer.
        """
        follower = EventFollower(
            self._transport,
            lambda known, limit: self.events(known, limit=limit),
            stream=self._event_stream,
            after=after,
            patience_s=patience_s,
        )
        return follower.follow()

    def public_key(self) -> str:
        """Return the key to which secrets are sealed: the pinned one, or the workers' answer.

        An answer that comes over the broker is as trustworthy as the broker: who can write there
        could answer with a key of his own, and read what is sealed to it.

        Raises:
            NotFound: no key is pinned, and the control worker has none.
        """
        if self._public_key is None:
            answer = self._transport.ask(contract.SYSTEM_PUBLIC_KEY, {})
            self._public_key = str(answer["public_key"])
        return self._public_key

    def seal(self, plaintext: bytes | str) -> str:
        """Encrypt a secret to the workers' key; see ``innkeeper.seal``.

        Raises:
            InvalidRequest: the key is none, or PyNaCl is not installed.
            NotFound: there is no key.
        """
        return sealing.seal(self.public_key(), plaintext)

    def check(self) -> list[Part]:
        """Try every part of Innkeeper; raises nothing, see ``Part``."""
        return diagnosis.check(self._transport)

    def _asker(self, reason: str | None, idempotency_key: str | None) -> Asker:
        return Asker(self.requested_by, reason, idempotency_key)

    def _send(self, message: Message) -> Operation:
        self._transport.publish(
            message.task,
            message.kwargs,
            task_id=message.operation_id,
            shown_as=message.shown_as,
        )
        return Operation(
            self._transport,
            message.operation_id,
            message=message,
            requested_by=self.requested_by,
        )


def _address(given: str | None, variable: str) -> str:
    address = given or os.environ.get(variable)
    if not address:
        raise _bad_address(variable, "is not set and no address was given")
    if not _is_redis(address):
        # The address is not repeated: it may hold a password.
        raise _bad_address(variable, "is not the address of a Redis")
    return address


def _is_redis(address: str) -> bool:
    try:
        parts = urlsplit(address)
        _ = parts.port  # Raises when it is not a number.
    except ValueError:
        return False
    return parts.scheme in _SCHEMES


def _bad_address(variable: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{variable} {what}.",
        {
            "problems": [{"path": variable, "message": what}],
            "hint": f"Export {variable}, for example redis://localhost:6379/0.",
        },
    )


def _whoami() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container's numeric user need not have a name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
