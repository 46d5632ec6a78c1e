"""What an error of libvirt means to Innkeeper: one table, keyed by libvirt's numbers.

The numbers are libvirt's stable ABI (``virErrorNumber``, ``virErrorDomain``), so nothing is
imported from libvirt here and the table can be tested without it. A code alone is often
ambiguous, so a row may name the domain (the part of libvirt that raised) and a piece of the
message; the first row that fits decides.

    LOST       the connection broke; the outcome of the call is unknown: reconnect and look
    BUSY       the call did not begin; the same call may be made again later
    TRANSIENT  the same call may work a little later
    STATE      the goal is reached already, or can never be: look at the state and decide
    GONE       the domain is not there
    PERMANENT  the same call will fail again
    OPERATOR   the host needs a human: configuration, rights, disk space
    ABORTED    we aborted the job ourselves
"""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from innkeeper.errors import (
    AgentUnresponsive,
    DomainNotFound,
    HypervisorBusy,
    HypervisorError,
    HypervisorRefused,
    HypervisorUnavailable,
    InnkeeperError,
    MigrationAborted,
    MigrationError,
    OutcomeUnknown,
)
from innkeeper.states import Effect

FROM_QEMU = 10
FROM_REMOTE = 13
FROM_RPC = 7

CODE_INTERNAL = 1
CODE_NO_DOMAIN = 42
CODE_OPERATION_INVALID = 55
CODE_AGENT_UNRESPONSIVE = 86
CODE_NO_METADATA = 80
CODE_CPU_INCOMPATIBLE = 91


class Meaning(StrEnum):
    """What to do about an error of libvirt; see the module's table."""

    LOST = "lost"
    BUSY = "busy"
    TRANSIENT = "transient"
    STATE = "state"
    GONE = "gone"
    PERMANENT = "permanent"
    OPERATOR = "operator"
    ABORTED = "aborted"


@dataclass(frozen=True)
class Fault:
    """A libvirtError without libvirt: its numbers and its text.

    Args:
        code: ``virErrorNumber``; 0 when libvirt gave none.
        domain: ``virErrorDomain``.
        text: libvirt's own message, bounded.
        errno: ``int1``, which is the errno of a system error; 0 otherwise.
    """

    code: int
    domain: int
    text: str
    errno: int = 0


@dataclass(frozen=True)
class _Row:
    codes: frozenset[int]
    meaning: Meaning
    domains: frozenset[int] = frozenset()
    text: str = ""
    errnos: frozenset[int] = frozenset()

    def fits(self, fault: Fault) -> bool:
        return (
            fault.code in self.codes
            and (not self.domains or fault.domain in self.domains)
            and (not self.errnos or fault.errno in self.errnos)
            and self.text in fault.text
        )


def _row(
    codes: tuple[int, ...],
    meaning: Meaning,
    *,
    domains: tuple[int, ...] = (),
    text: str = "",
    errnos: tuple[int, ...] = (),
) -> _Row:
    return _Row(frozenset(codes), meaning, frozenset(domains), text, frozenset(errnos))


_WIRE = (FROM_RPC, FROM_REMOTE)
_INVALID_OBJECT = (7, 36, 46, 52, 58, 61, 65, 71, 73, 100, 102, 105)
_NO_SUCH = (43, 49, 50, 53, 57, 62, 66, 72, 80, 95, 96, 99, 101, 103, 104, 107, 108)
_EACCES, _EBUSY, _EAGAIN, _EINTR, _ENOSPC, _ETIMEDOUT = 13, 16, 11, 4, 28, 110

# Read top down. Sources: libvirt 9.0's include/libvirt/virterror.h and failures provoked on it.
TABLE: tuple[_Row, ...] = (
    _row((1, 38, 39), Meaning.LOST, domains=_WIRE),
    _row((5, 39), Meaning.LOST),
    # "Invalid connection pointer": it was closed under the caller.
    _row((6,), Meaning.LOST),
    _row((1,), Meaning.LOST, text="client socket is closed"),
    _row((1,), Meaning.TRANSIENT, text="no RAM info was set"),
    _row((1,), Meaning.OPERATOR, text="same host"),
    _row((1,), Meaning.OPERATOR, text='Failed to get "write" lock'),
    _row((1,), Meaning.PERMANENT),
    _row((9,), Meaning.LOST, text="Lost connection to destination host"),
    _row((9,), Meaning.BUSY, text="max_queued"),
    _row((9,), Meaning.STATE, text="already defined"),
    _row((9,), Meaning.STATE, text="no longer running"),
    _row((9,), Meaning.PERMANENT),
    _row((38,), Meaning.OPERATOR, errnos=(_EACCES, _ENOSPC)),
    _row((38,), Meaning.BUSY, errnos=(_EBUSY,)),
    _row((38,), Meaning.TRANSIENT, errnos=(_EAGAIN, _EINTR, _ETIMEDOUT)),
    _row((38,), Meaning.PERMANENT),
    _row((42,), Meaning.GONE),
    _row(_NO_SUCH, Meaning.STATE),
    _row((28, 37, 55, 76, 90, 106), Meaning.STATE),
    _row((68, 83, 87), Meaning.BUSY),
    _row((78,), Meaning.ABORTED),
    _row((69,), Meaning.LOST),
    _row((86, 97), Meaning.TRANSIENT),
    _row((2, 4, 30, 31, 34, 40, 63, 85, 89, 94, 98), Meaning.TRANSIENT),
    _row((29, 32, 33, 41, 45, 48, 51, 54, 56, 60, 64, 70, 79, 88), Meaning.OPERATOR),
    _row(_INVALID_OBJECT, Meaning.PERMANENT),
    _row((3, 8, *range(10, 28), 35, 44, 59, 67, 74, 75, 77, 81, 82, 84, 91, 92), Meaning.PERMANENT),
    _row((93, 109, 110), Meaning.PERMANENT),
)


def classify(fault: Fault) -> Meaning:
    """Return what an error of libvirt means.

    An error the table does not know is taken as a lost connection, because that reading makes the
    caller look before it acts.
    """
    return next((row.meaning for row in TABLE if row.fits(fault)), Meaning.LOST)


_CLASSES: dict[Meaning, type[InnkeeperError]] = {
    Meaning.LOST: HypervisorUnavailable,
    Meaning.BUSY: HypervisorBusy,
    Meaning.TRANSIENT: HypervisorBusy,
    Meaning.STATE: HypervisorRefused,
    Meaning.GONE: DomainNotFound,
    Meaning.PERMANENT: HypervisorRefused,
    Meaning.OPERATOR: HypervisorRefused,
    Meaning.ABORTED: MigrationAborted,
}

_SENTENCES = {
    Meaning.LOST: "The connection to libvirt on {host} broke while it was to {what}",
    Meaning.BUSY: "Libvirt on {host} is busy and did not {what}",
    Meaning.TRANSIENT: "Libvirt on {host} could not {what} just now",
    Meaning.STATE: "The domain's state on {host} does not let libvirt {what}",
    Meaning.GONE: "Libvirt on {host} has no such domain to {what}",
    Meaning.PERMANENT: "Libvirt on {host} refused to {what}",
    Meaning.OPERATOR: "Libvirt on {host} cannot {what} until its host is mended",
    Meaning.ABORTED: "Libvirt on {host} was told to stop before it could {what}",
}


def translate(
    fault: Fault, *, what: str, host: str, instance_id: UUID | None = None
) -> InnkeeperError:
    """Return Innkeeper's error for one of libvirt's.

    Args:
        fault: libvirt's numbers and text.
        what: what was attempted, as an infinitive: "start the domain".
        host: the host's name.
        instance_id: the guest concerned.

    Returns:
        An error with our sentence first and libvirt's after it; ``details`` has ``meaning``,
        ``libvirt_code``, ``libvirt_domain``, ``libvirt_message`` and ``host``.
    """
    meaning = classify(fault)
    cls = _CLASSES[meaning]
    if fault.code in (86, 97):
        cls = AgentUnresponsive
    return cls(_sentence(meaning, fault, what, host), _details(fault, meaning, host, instance_id))


def translate_migration(fault: Fault, *, host: str, instance_id: UUID) -> InnkeeperError:
    """Return the error of a migration that ended with one of libvirt's.

    Whatever the class, its effect is ``unknown``: libvirt raises the same errors when the guest
    runs on its source, on its destination, and on both. Only a look at both hosts tells.
    """
    what = "migrate the guest"
    meaning = classify(fault)
    details = _details(fault, meaning, host, instance_id)
    cls: type[InnkeeperError] = {
        Meaning.ABORTED: MigrationAborted,
        Meaning.LOST: OutcomeUnknown,
        Meaning.BUSY: HypervisorBusy,
        Meaning.GONE: DomainNotFound,
    }.get(meaning, MigrationError)
    if meaning is not Meaning.BUSY:
        details["effect"] = Effect.UNKNOWN.value
    return cls(_sentence(meaning, fault, what, host), details)


def meaning_of(error: InnkeeperError) -> Meaning | None:
    """Return what libvirt's error meant, for an error made by ``translate``; None for others."""
    value = error.details.get("meaning")
    return Meaning(value) if value else None


def libvirt_code_of(error: InnkeeperError) -> int | None:
    """Return libvirt's number for an error made by ``translate``; None for others."""
    return error.details.get("libvirt_code")


def not_connected(host: str, what: str) -> HypervisorError:
    """Return the error for a call that was not made because there is no connection."""
    return HypervisorUnavailable(
        f"Libvirt on {host} is not connected, so it was not asked to {what}.",
        {"host": host, "effect": Effect.NOT_STARTED.value, "meaning": Meaning.LOST.value},
    )


def _sentence(meaning: Meaning, fault: Fault, what: str, host: str) -> str:
    return f"{_SENTENCES[meaning].format(host=host, what=what)}: {fault.text or 'no text given'}"


def _details(
    fault: Fault, meaning: Meaning, host: str, instance_id: UUID | None
) -> dict[str, object]:
    details: dict[str, object] = {
        "meaning": meaning.value,
        "libvirt_code": fault.code,
        "libvirt_domain": fault.domain,
        "libvirt_message": fault.text,
        "host": host,
    }
    if instance_id is not None:
        details["instance_id"] = str(instance_id)
    if meaning is Meaning.LOST:
        details["effect"] = Effect.UNKNOWN.value
    return details
