"""The table of libvirt's errors."""

from uuid import uuid4

import pytest

from innkeeper.errors import (
    AgentUnresponsive,
    DomainNotFound,
    HypervisorBusy,
    HypervisorRefused,
    HypervisorUnavailable,
    InnkeeperError,
    MigrationAborted,
    MigrationError,
    OutcomeUnknown,
    from_wire,
)
from innkeeper.states import Effect
from virt.errors import (
    Fault,
    Meaning,
    classify,
    libvirt_code_of,
    meaning_of,
    not_connected,
    translate,
    translate_migration,
)

# (code, domain, text, errno) as seen on libvirt 9.0 → meaning.
SEEN = [
    ((1, 7, "connection closed due to keepalive timeout", 0), Meaning.LOST),
    ((1, 7, "client socket is closed", 0), Meaning.LOST),
    ((38, 7, "End of file while reading data: Input/output error", 5), Meaning.LOST),
    ((38, 7, "Failed to connect socket: Connection refused", 111), Meaning.LOST),
    ((39, 7, "no call waiting for reply with prog", 0), Meaning.LOST),
    ((6, 0, "invalid connection pointer in virDomainLookupByUUID", 0), Meaning.LOST),
    ((9, 10, "operation failed: Lost connection to destination host", 0), Meaning.LOST),
    ((68, 0, "cannot acquire state change lock", 0), Meaning.BUSY),
    ((9, 10, "due to max_queued limit", 0), Meaning.BUSY),
    ((38, 10, "Failed to terminate process: Device or resource busy", 16), Meaning.BUSY),
    ((42, 10, "Domain not found", 0), Meaning.GONE),
    ((55, 10, "domain is already running", 0), Meaning.STATE),
    ((9, 20, "domain 'x' is already defined with uuid", 0), Meaning.STATE),
    ((9, 10, "domain is no longer running", 0), Meaning.STATE),
    ((80, 20, "Requested metadata element is not present", 0), Meaning.STATE),
    ((78, 10, "job 'migration out' canceled by client", 0), Meaning.ABORTED),
    ((27, 20, "unexpected element", 0), Meaning.PERMANENT),
    ((67, 10, "readonly ide disks are not supported", 0), Meaning.PERMANENT),
    ((81, 10, "Migration without shared storage is unsafe", 0), Meaning.PERMANENT),
    ((8, 20, "Attempt to migrate guest to the same host", 0), Meaning.PERMANENT),
    ((1, 10, "unable to execute QEMU command", 0), Meaning.PERMANENT),
    ((1, 10, 'Failed to get "write" lock', 0), Meaning.OPERATOR),
    ((1, 10, "Attempt to migrate guest to the same host 6d0c", 0), Meaning.OPERATOR),
    ((38, 18, "cannot open file: Permission denied", 13), Meaning.OPERATOR),
    ((38, 18, "cannot write: No space left on device", 28), Meaning.OPERATOR),
    ((38, 10, "Cannot access storage file: No such file", 2), Meaning.PERMANENT),
    ((88, 0, "access denied", 0), Meaning.OPERATOR),
    ((86, 10, "Guest agent is not responding", 0), Meaning.TRANSIENT),
    ((4711, 0, "from a later libvirt", 0), Meaning.LOST),
    ((0, 0, "", 0), Meaning.LOST),
]


@pytest.mark.parametrize(("seen", "meaning"), SEEN)
def test_what_was_seen(seen: tuple[int, int, str, int], meaning: Meaning) -> None:
    assert classify(Fault(*seen)) is meaning


@pytest.mark.parametrize("code", range(1, 111))
def test_every_code_of_libvirt_9_is_in_the_table(code: int) -> None:
    assert isinstance(classify(Fault(code, 0, "")), Meaning)
    unknown_reading = Meaning.LOST
    if code not in (5, 6, 39, 69, 47):
        assert classify(Fault(code, 0, "")) is not unknown_reading


@pytest.mark.parametrize(
    ("fault", "cls"),
    [
        (Fault(38, 7, "End of file"), HypervisorUnavailable),
        (Fault(68, 0, "lock"), HypervisorBusy),
        (Fault(42, 10, "not found"), DomainNotFound),
        (Fault(55, 10, "running"), HypervisorRefused),
        (Fault(86, 10, "silent"), AgentUnresponsive),
    ],
)
def test_our_sentence_comes_first_and_the_facts_survive(
    fault: Fault, cls: type[InnkeeperError]
) -> None:
    instance_id = uuid4()
    error = translate(fault, what="start the domain", host="hv-a", instance_id=instance_id)
    assert type(error) is cls
    assert "start the domain" in error.message.split(fault.text)[0]
    assert error.message.endswith(fault.text)
    assert error.host == "hv-a"
    again = from_wire(error.to_wire())
    assert type(again) is cls
    assert libvirt_code_of(again) == fault.code
    assert meaning_of(again) is classify(fault)
    assert again.details["instance_id"] == str(instance_id)


def test_a_lost_call_is_of_unknown_effect_and_one_not_made_is_not() -> None:
    lost = translate(Fault(38, 7, "End of file"), what="start it", host="hv-a")
    assert lost.effect is Effect.UNKNOWN
    assert not_connected("hv-a", "start it").effect is Effect.NOT_STARTED


@pytest.mark.parametrize(
    ("fault", "cls"),
    [
        (Fault(78, 10, "canceled by client"), MigrationAborted),
        (Fault(1, 7, "client socket is closed"), OutcomeUnknown),
        (Fault(9, 10, "domain is no longer running"), MigrationError),
        (Fault(81, 10, "unsafe"), MigrationError),
        (Fault(42, 10, "gone"), DomainNotFound),
    ],
)
def test_no_error_of_a_migration_says_where_the_guest_is(
    fault: Fault, cls: type[InnkeeperError]
) -> None:
    error = translate_migration(fault, host="hv-a", instance_id=uuid4())
    assert type(error) is cls
    assert error.effect is Effect.UNKNOWN
