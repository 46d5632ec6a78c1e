"""The words of Innkeeper's state machines.

Every value stands in the database and on the wire as it is here.
"""

from enum import StrEnum


class InstanceState(StrEnum):
    """What a guest is, as its owner sees it."""

    BUILDING = "building"
    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    RESCUED = "rescued"
    RESIZED = "resized"
    SOFT_DELETED = "soft_deleted"
    DELETED = "deleted"
    ERROR = "error"
    UNKNOWN = "unknown"


class PowerState(StrEnum):
    """What the hypervisor last said of the guest's domain."""

    NOSTATE = "nostate"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"
    SUSPENDED = "suspended"


class OperationState(StrEnum):
    """The life of one request."""

    QUEUED = "queued"
    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when the operation has ended and nothing about it will change."""
        return self in FINAL_OPERATION_STATES


LIVE_OPERATION_STATES = frozenset(
    {OperationState.QUEUED, OperationState.RUNNING, OperationState.UNDOING}
)
FINAL_OPERATION_STATES = frozenset(set(OperationState) - LIVE_OPERATION_STATES)


class StepState(StrEnum):
    """The life of one step in the ledger.

    queued → running → done | failed, and on the way back: undo → undoing → undone.
    A step that was never begun when its operation turned back is skipped.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNDO = "undo"
    UNDOING = "undoing"
    UNDONE = "undone"


class Effect(StrEnum):
    """Where a failed operation left the guest: the first question an operator asks."""

    NOT_STARTED = "not_started"
    ROLLED_BACK = "rolled_back"
    DONE = "done"
    UNKNOWN = "unknown"


class BootStage(StrEnum):
    """The rungs of the boot ladder, lowest first."""

    DEFINED = "defined"
    RUNNING = "running"
    CONSOLE = "console"
    AGENT = "agent"
    CLOUD_INIT = "cloud_init"

    @property
    def rung(self) -> int:
        """Height on the ladder, for comparing stages."""
        return list(BootStage).index(self)


class PowerPolicy(StrEnum):
    """What to do when a guest's power state departs from its record."""

    SYNC = "sync"
    STOP = "stop"
    RESTART = "restart"
    ALERT = "alert"


class Storage(StrEnum):
    """How a migration treats the guest's disks.

    auto: as the hosts see each other's files, pool by pool;
    shared: both hosts see all disks, none is copied;
    block: all are copied;
    mixed: those in pools that both hosts see stay, the others are copied.
    """

    AUTO = "auto"
    SHARED = "shared"
    BLOCK = "block"
    MIXED = "mixed"


class Handover(StrEnum):
    """Who starts the guest on a migration's destination.

    safe: it arrives paused and is resumed after the database recorded the move;
    fast: libvirt starts it itself; only where a storage lock prevents a second run.
    """

    SAFE = "safe"
    FAST = "fast"
