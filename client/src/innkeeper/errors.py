"""One error tree, for the worker that raises and the service that catches.

    InnkeeperError
    ├─ RequestError            the caller must change something
    │  ├─ InvalidRequest  ├─ NotFound  ├─ AlreadyExists
    │  ├─ Conflict        ├─ StateConflict  └─ Busy
    │  └─ SecretUnreadable
    ├─ CapacityError           ├─ NoHostFits ├─ HostUnsuitable └─ NetworkNotReady
    ├─ PrecheckFailed          all failed checks of a migration at once
    ├─ ImageError              ├─ FetchFailed (SourceRefused) ├─ DigestMismatch
    │                          ├─ UnsafeImage (BackingFile, ExternalDataFile,
    │                          │  UnsupportedImageFeature, MalformedImage, TruncatedImage)
    │                          ├─ FormatMismatch (NotAnImage) ├─ ImageTooLarge └─ SourceLost
    ├─ GuestError              ├─ DefineRejected ├─ StartFailed ├─ BootTimeout
    │                          ├─ StartInterrupted ├─ GuestDied (BootLoop)
    │                          ├─ CloudInitFailed ├─ AgentUnresponsive
    │                          ├─ FileInjectionFailed └─ StopTimeout
    ├─ MigrationError          ├─ MigrationAborted ├─ MigrationTimeout └─ OutcomeUnknown
    ├─ HypervisorError         ├─ HypervisorUnavailable └─ HypervisorRefused
    ├─ Interrupted             ├─ Cancelled ├─ DeadlineExceeded └─ AttemptsExhausted
    ├─ FencingError            ├─ StaleDomain ├─ LeaseLost ├─ NotFenced
    │                          ├─ FencingFailed ├─ HostFenced └─ HostReturned
    ├─ ServiceError            ├─ BrokerUnavailable ├─ WaitTimeout └─ EventsLost
    └─ InternalError           a defect of Innkeeper

Every class is built from ``(message, details)`` only, both JSON, because that is what survives a
Celery result backend. ``details`` may carry ``host``, ``step``, ``effect``, ``hint`` and
``retry_after_s``; the rest is the class's own and is named in its docstring.
"""

from typing import Any, ClassVar, Self

from innkeeper.states import Effect

Details = dict[str, Any]

_REGISTRY: dict[str, type["InnkeeperError"]] = {}


class InnkeeperError(Exception):
    """Base of all errors of Innkeeper.

    Args:
        message: one sentence, subject first, values with units.
        details: JSON facts; ``hint`` and ``effect`` there override the class's own.
    """

    code: ClassVar[str] = "innkeeper_error"
    retryable: ClassVar[bool] = False
    default_effect: ClassVar[Effect] = Effect.NOT_STARTED
    default_hint: ClassVar[str] = "Look at the operation's timeline: innkeeper explain OPERATION."
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, details: Details | None = None) -> None:
        self.message = message
        self.details: Details = dict(details or {})
        super().__init__(message, self.details)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.code] = cls

    def __str__(self) -> str:
        return self.message

    @property
    def hint(self) -> str:
        """The next thing to try."""
        return str(self.details.get("hint") or self.default_hint)

    @property
    def effect(self) -> Effect:
        """Where the guest is now, relative to the request."""
        return Effect(self.details.get("effect") or self.default_effect)

    @property
    def host(self) -> str | None:
        """The host on which it failed, where one was involved."""
        return self.details.get("host")

    @property
    def step(self) -> str | None:
        """The step of the operation that failed."""
        return self.details.get("step")

    def with_details(self, **facts: Any) -> Self:
        """Return the same error with facts added; facts that are already there stay."""
        return type(self)(self.message, {**facts, **self.details})

    def to_wire(self) -> Details:
        """Return the JSON form that stands in rows, in ``--json`` output and in events."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "effect": self.effect.value,
            "host": self.host,
            "step": self.step,
            "retryable": self.retryable,
            "details": self.details,
        }


_REGISTRY[InnkeeperError.code] = InnkeeperError


def from_wire(wire: Details) -> InnkeeperError:
    """Rebuild an error from its JSON form.

    Args:
        wire: what ``to_wire`` made, perhaps by a newer release.

    Returns:
        The class of the code; an unknown code gives the base class, never an exception.
    """
    cls = _REGISTRY.get(str(wire.get("code")), InnkeeperError)
    details = dict(wire.get("details") or {})
    for key in ("hint", "effect", "host", "step"):
        if wire.get(key) is not None:
            details.setdefault(key, wire[key])
    return cls(str(wire.get("message") or "no message was recorded"), details)


def catalogue() -> dict[str, type[InnkeeperError]]:
    """Return every error class by its code."""
    return dict(sorted(_REGISTRY.items()))


class RequestError(InnkeeperError):
    """The request cannot be done as it was made; nothing was begun."""

    code = "request_error"
    exit_code = 2
    default_hint = "Correct the request and send it again."


class InvalidRequest(RequestError):
    """The request's fields are wrong. Details: ``problems``, a list of ``{path, message}``."""

    code = "invalid_request"


class NotFound(RequestError):
    """The named thing does not exist. Details: ``what``, ``name``."""

    code = "not_found"
    exit_code = 3
    default_hint = "List what there is: innkeeper ls, innkeeper hosts, innkeeper operations."


class AlreadyExists(RequestError):
    """A living thing has that name already. Details: ``what``, ``name``."""

    code = "already_exists"
    default_hint = "Choose another name, or delete the one that has it."


class Conflict(RequestError):
    """The thing is not in a condition that allows the request."""

    code = "conflict"
    exit_code = 4


class StateConflict(Conflict):
    """The guest's state does not allow the verb. Details: ``expected`` (list), ``actual``."""

    code = "state_conflict"
    default_hint = "Bring the guest to one of the expected states first."


class Busy(Conflict):
    """Another operation holds the guest. Details: ``operation_id``, ``verb``."""

    code = "busy"
    default_hint = "Wait for that operation, or cancel it: innkeeper cancel OPERATION."


class SecretUnreadable(RequestError):
    """A sealed text cannot be opened with the keys that are there. Details: ``path``, ``keys``."""

    code = "secret_unreadable"
    default_hint = "Ask for the workers' key again (innkeeper public-key) and seal the secret anew."


class CapacityError(InnkeeperError):
    """No room, now."""

    code = "capacity_error"
    exit_code = 5
    default_hint = "Free capacity, enable another host, or ask for less."


class NoHostFits(CapacityError):
    """Every host was refused. Details: ``refusals``, a list of ``{host, code, message}``."""

    code = "no_host_fits"


class HostUnsuitable(CapacityError):
    """The chosen host failed by itself; another may do. Details: ``host``."""

    code = "host_unsuitable"


class NetworkNotReady(CapacityError):
    """The host did not bring the guest's network about, so the guest was not let run.

    Details: ``missing`` (a list of sentences), ``ports``, ``limit_s``, ``host``.
    """

    code = "network_not_ready"
    default_effect = Effect.ROLLED_BACK
    default_hint = "Look at the host's bridge and at its libvirt's filters, or use another host."


class PrecheckFailed(InnkeeperError):
    """A migration's checks failed; nothing was changed.

    Details: ``failures`` as ``{check, code, message, hint}``.
    """

    code = "precheck_failed"
    exit_code = 6
    default_hint = "Mend what the failed checks name, or choose another destination."


class ImageError(InnkeeperError):
    """The image cannot be used."""

    code = "image_error"
    exit_code = 7
    default_effect = Effect.ROLLED_BACK
    default_hint = "Check the image's address, format and digest."


class FetchFailed(ImageError):
    """The image's source did not deliver. Details: ``url``."""

    code = "fetch_failed"
    retryable = True
    default_hint = "Check that the host reaches the image's address, then ask again."


class SourceRefused(FetchFailed):
    """The image's source will not deliver, however often it is asked.

    Details: ``url``, ``status`` where a server answered.
    """

    code = "source_refused"
    retryable = False
    default_hint = "Ask for the address yourself, from that host; a signed one may have expired."


class DigestMismatch(ImageError):
    """The delivered bytes are not the promised ones.

    Details: ``algorithm``, ``expected``, ``actual``.
    """

    code = "digest_mismatch"
    default_hint = "The image or its digest is wrong: compare with the publisher's."


class UnsafeImage(ImageError):
    """The image refers to files outside itself or is malformed. Details: ``reason``."""

    code = "unsafe_image"
    default_hint = "Do not use this image; convert the original to a plain qcow2 or raw image."


class BackingFile(UnsafeImage):
    """The image rests on another file, which it names. Details: ``reason``."""

    code = "backing_file"
    default_hint = "Flatten it where it was made: qemu-img convert -O qcow2 ORIGINAL PLAIN.qcow2."


class ExternalDataFile(UnsafeImage):
    """The image keeps its data in another file, which it names. Details: ``reason``."""

    code = "external_data_file"
    default_hint = (
        "Make it one file where it was made: qemu-img convert -O qcow2 ORIGINAL ONE.qcow2."
    )


class UnsupportedImageFeature(UnsafeImage):
    """The image's header asks for something this host does not grant. Details: ``reason``."""

    code = "unsupported_image_feature"
    default_hint = (
        "Write it anew without the feature: qemu-img convert -O qcow2 ORIGINAL NEW.qcow2."
    )


class MalformedImage(UnsafeImage):
    """The image's own tables contradict each other or are out of all proportion.

    Details: ``reason``.
    """

    code = "malformed_image"
    default_hint = "Look at the original with qemu-img check; make the image anew."


class TruncatedImage(UnsafeImage):
    """The image refers to bytes behind its own end. Details: ``reason``."""

    code = "truncated_image"
    default_hint = "The file is cut off: put the whole of it there, and give its digest."


class FormatMismatch(ImageError):
    """The image is not of the declared or an allowed format. Details: ``expected``, ``actual``."""

    code = "format_mismatch"
    default_hint = "Declare the image's true format; allowed are qcow2 and raw."


class NotAnImage(FormatMismatch):
    """The bytes are of no disk image format at all. Details: ``expected``, ``actual``."""

    code = "not_an_image"
    default_hint = "Look at what the address delivers: a web page, an archive, a checksum file?"


class ImageTooLarge(ImageError):
    """The image's virtual size exceeds the disk.

    Details: ``virtual_size_bytes``, ``disk_size_bytes``.
    """

    code = "image_too_large"
    default_hint = "Ask for a larger disk_gib, or use a smaller image."


class SourceLost(ImageError):
    """The source that a guest still reads its disk from has gone away. Details: ``url``."""

    code = "source_lost"
    default_effect = Effect.DONE
    default_hint = "Bring the image's source back; then start the guest again."


class GuestError(InnkeeperError):
    """The guest did not do what it should."""

    code = "guest_error"
    exit_code = 8
    default_effect = Effect.ROLLED_BACK


class DefineRejected(GuestError):
    """Libvirt refused the domain XML. Details: ``libvirt_code``."""

    code = "define_rejected"


class StartFailed(GuestError):
    """The domain could not be started. Details: ``libvirt_code``, ``console_tail``."""

    code = "start_failed"


class StartInterrupted(StartFailed):
    """QEMU ended while it started and left no word: something killed it."""

    code = "start_interrupted"
    retryable = True
    default_hint = "Look in the host's kernel log whether memory ran out there, then try again."


class BootTimeout(GuestError):
    """The guest did not reach the wished boot stage in time.

    Details: ``reached``, ``wanted``, ``console_tail``.
    """

    code = "boot_timeout"
    default_hint = (
        "Read the console's tail in the details; wait for a lower stage, or mend the image."
    )


class GuestDied(GuestError):
    """The guest ended while it was being booted or moved. Details: ``reason``, ``console_tail``."""

    code = "guest_died"
    default_hint = "Read the console's tail in the details."


class BootLoop(GuestDied):
    """The guest resets again and again while it boots.

    Details: ``resets``, ``within_s``, ``console_tail``.
    """

    code = "boot_loop"
    default_hint = (
        "Read the console's tail in the details: the last lines before a reset name its cause."
    )


class CloudInitFailed(GuestError):
    """The guest booted, and its cloud-init failed or will never run.

    Details: ``status``, ``errors`` (what cloud-init tells), ``console_tail``.
    """

    code = "cloud_init_failed"
    default_hint = "Mend the user data or the image; wait for agent to look at such a guest."


class AgentUnresponsive(GuestError):
    """The guest agent does not answer."""

    code = "agent_unresponsive"
    default_hint = "Check that qemu-guest-agent runs in the guest."


class StopTimeout(GuestError):
    """The guest is still running after it was told to stop."""

    code = "stop_timeout"
    default_effect = Effect.NOT_STARTED
    default_hint = "Ask again with force."


class FileInjectionFailed(GuestError):
    """A file could not be written through the guest agent. Details: ``path``, ``reason``."""

    code = "file_injection_failed"
    default_hint = "Check the file's path and owner, and that the agent may write files and run."


class MigrationError(InnkeeperError):
    """A live migration did not succeed."""

    code = "migration_error"
    exit_code = 9
    default_effect = Effect.ROLLED_BACK


class MigrationAborted(MigrationError):
    """The migration was aborted; the guest runs on its source."""

    code = "migration_aborted"


class MigrationTimeout(MigrationError):
    """The migration did not converge in time; the guest runs on its source."""

    code = "migration_timeout"
    default_hint = (
        "Raise max_downtime_ms or deadline_s, or migrate when the guest writes less memory."
    )


class OutcomeUnknown(MigrationError):
    """Both hosts must be asked before anything is done. The record says unknown until then."""

    code = "outcome_unknown"
    retryable = True
    default_effect = Effect.UNKNOWN
    default_hint = (
        "Bring the unreachable host back, or fence it; nothing is cleaned up before that."
    )


class HypervisorError(InnkeeperError):
    """Libvirt on a host failed."""

    code = "hypervisor_error"
    exit_code = 10
    default_hint = "Look at the host's libvirt log, and at innkeeper hosts."


class HypervisorUnavailable(HypervisorError):
    """Libvirt on the host cannot be reached; the outcome of a call under way is not known."""

    code = "hypervisor_unavailable"
    retryable = True


class HypervisorBusy(HypervisorError):
    """Libvirt did not begin the call because another job holds the domain."""

    code = "hypervisor_busy"
    retryable = True


class HypervisorRefused(HypervisorError):
    """Libvirt refused a call for good. Details: ``libvirt_code``, ``libvirt_domain``."""

    code = "hypervisor_refused"


class DomainNotFound(HypervisorError):
    """The host has no such domain."""

    code = "domain_not_found"


class Interrupted(InnkeeperError):
    """The operation was stopped from outside before its end."""

    code = "interrupted"
    exit_code = 11
    default_effect = Effect.ROLLED_BACK


class Cancelled(Interrupted):
    """Somebody cancelled the operation."""

    code = "cancelled"
    default_hint = "Ask again when wanted."


class DeadlineExceeded(Interrupted):
    """The operation did not end in its time. Details: ``limit_s``."""

    code = "deadline_exceeded"
    default_hint = "See at which step it waited: innkeeper explain OPERATION."


class AttemptsExhausted(Interrupted):
    """A step was begun too often without an outcome. Details: ``attempts``."""

    code = "attempts_exhausted"
    default_hint = "Something kills the worker in this step: read the host worker's log."


class FencingError(InnkeeperError):
    """A guard against a guest running twice has refused."""

    code = "fencing_error"
    exit_code = 12
    default_effect = Effect.NOT_STARTED


class StaleDomain(FencingError):
    """The host's domain is not the record's one. Details: ``domain_epoch``, ``record_epoch``."""

    code = "stale_domain"
    default_hint = "The guest has moved since; do not start this copy."


class LeaseLost(FencingError):
    """Another worker owns the step now; this one stops and writes nothing more."""

    code = "lease_lost"


class NotFenced(FencingError):
    """Nothing proves that the host is dead. Details: ``host``, ``heard_s``."""

    code = "not_fenced"
    default_hint = (
        "Have the host switched off by a fencing hook, or see with your own eyes that it is off "
        "and say so: --i-confirm-host-is-dead 'who looked, and how'."
    )


class FencingFailed(FencingError):
    """The host could not be switched off, or lives although that was said. Details: ``output``."""

    code = "fencing_failed"
    default_hint = "Mend the fencing hook, or switch the host off by hand; nothing was moved."


class HostFenced(FencingError):
    """The operation had a part on a host that was fenced since; it was ended."""

    code = "host_fenced"
    default_effect = Effect.UNKNOWN
    default_hint = "Look where the guest is now, innkeeper show NAME, and ask again."


class HostReturned(FencingError):
    """The fenced host is back: what was not moved before stays there. Details: ``src``."""

    code = "host_returned"
    default_hint = "The guest is on its host as before: start it there, or move it."


class ServiceError(InnkeeperError):
    """A part of Innkeeper itself is out of reach."""

    code = "service_error"
    exit_code = 13
    retryable = True


class BrokerUnavailable(ServiceError):
    """Redis cannot be reached; the request may not have been sent."""

    code = "broker_unavailable"
    default_effect = Effect.UNKNOWN
    default_hint = (
        "Check Redis with innkeeper doctor; sending again with the same idempotency key is safe."
    )


class WaitTimeout(ServiceError):
    """The wait ended before the operation did; the operation goes on."""

    code = "wait_timeout"
    default_effect = Effect.UNKNOWN
    default_hint = "Wait again: the operation goes on by itself."


class EventsLost(ServiceError):
    """Events that a follower has not seen are no longer kept, or never were here.

    Details: ``after``, ``oldest``, ``newest``.
    """

    code = "events_lost"
    retryable = False
    default_hint = (
        "Read the state anew (instances, operations, hosts), then follow from the newest event."
    )


class InternalError(InnkeeperError):
    """A defect of Innkeeper. Details: ``exception``, ``traceback_id``."""

    code = "internal_error"
    exit_code = 70
    default_effect = Effect.UNKNOWN
    default_hint = "Report it with the worker's log of that time."
