"""Whose fault an error is: what decides whether another host is worth a try. A pure table."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from innkeeper import errors


class Blame(StrEnum):
    """Who could have made it go well."""

    HOST = "host"
    """The host: another one may do."""
    IMAGE = "image"
    """The image or its source: the same on every host."""
    USER = "user"
    """The request: the same on every host."""
    GUEST = "guest"
    """What runs in the guest: the same on every host."""
    NOBODY = "nobody"
    """A cancel, a deadline, a guard, or a defect: another host would only hide it."""


_CODES: dict[Blame, tuple[type[errors.InnkeeperError], ...]] = {
    Blame.HOST: (
        errors.HostUnsuitable,
        errors.HypervisorUnavailable,
        errors.HypervisorBusy,
        errors.HypervisorError,
        errors.HypervisorRefused,
        # QEMU could not be started: a bridge, a device or memory is missing on this host.
        errors.StartFailed,
        errors.StartInterrupted,
        errors.NetworkNotReady,
        errors.HostFenced,
        # A key is missing on this host; control, where it has keys, has refused the others.
        errors.SecretUnreadable,
        # The destination of a migration was found wanting.
        errors.PrecheckFailed,
    ),
    Blame.IMAGE: (
        errors.ImageError,
        errors.FetchFailed,
        errors.SourceLost,
        errors.DigestMismatch,
        errors.UnsafeImage,
        errors.FormatMismatch,
        errors.ImageTooLarge,
        errors.BackingFile,
        errors.ExternalDataFile,
        errors.MalformedImage,
        errors.NotAnImage,
        errors.SourceRefused,
        errors.TruncatedImage,
        errors.UnsupportedImageFeature,
    ),
    Blame.USER: (
        errors.RequestError,
        errors.InvalidRequest,
        errors.NotFound,
        errors.AlreadyExists,
        errors.Conflict,
        errors.StateConflict,
        errors.Busy,
        errors.DefineRejected,
        # All hosts have been asked.
        errors.CapacityError,
        errors.NoHostFits,
    ),
    Blame.GUEST: (
        errors.GuestError,
        errors.BootTimeout,
        errors.GuestDied,
        errors.BootLoop,
        errors.CloudInitFailed,
        errors.FileInjectionFailed,
        errors.AgentUnresponsive,
        errors.StopTimeout,
        errors.MigrationError,
        errors.MigrationAborted,
        errors.MigrationTimeout,
    ),
    Blame.NOBODY: (
        errors.InnkeeperError,
        errors.InternalError,
        errors.Interrupted,
        errors.Cancelled,
        errors.DeadlineExceeded,
        # What kills the workers of one host would kill those of the next.
        errors.AttemptsExhausted,
        errors.OutcomeUnknown,
        errors.DomainNotFound,
        errors.FencingError,
        errors.StaleDomain,
        errors.EventsLost,
        errors.LeaseLost,
        errors.NotFenced,
        errors.FencingFailed,
        errors.HostReturned,
        errors.ServiceError,
        errors.BrokerUnavailable,
        errors.WaitTimeout,
    ),
}

BLAME: Mapping[str, Blame] = {
    error.code: blame for blame, classes in _CODES.items() for error in classes
}


def is_fault_of_host(error: Mapping[str, Any] | None, host: str | None) -> bool:
    """Tell whether an operation failed because of the host that was chosen for it.

    Args:
        error: the wire form of its error.
        host: the chosen host. What failed on the other one, a migration's source, is not its
            fault; failed checks are, on whichever of the two they were made.
    """
    code = str((error or {}).get("code"))
    if BLAME.get(code) is not Blame.HOST:
        return False
    failed_on = (error or {}).get("host")
    return code == errors.PrecheckFailed.code or failed_on in (None, host)


def list_tried(refusals: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the hosts that were chosen, and failed; the others were refused by a filter."""
    return frozenset(str(each["host"]) for each in refusals if each.get("code") in BLAME)
