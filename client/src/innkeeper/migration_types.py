"""How a live migration may proceed: the policy of one request, and the defaults of many."""

from typing import Annotated, Literal

from pydantic import Field

from innkeeper.messages import HostName, Request
from innkeeper.states import Handover, Storage

DowntimeMs = Annotated[int, Field(ge=1, le=2_000_000)]
DeadlineS = Annotated[float, Field(gt=0, le=86400)]
BandwidthMibS = Annotated[int, Field(ge=0, le=1_000_000)]
Connections = Annotated[int, Field(ge=1, le=255)]
OnTimeout = Literal["abort", "pause", "post_copy"]


class MigrationPolicy(Request):
    """How a live migration may proceed.

    What a request leaves open is taken from the guest's own ``migration``, then from the control
    worker's settings, then from here.

    Args:
        dst: the destination; None lets the scheduler choose.
        storage: what to do with the disks; ``auto`` decides by a probe file.
        handover: see ``Handover``; left open it is ``fast`` where ``post_copy`` is allowed.
        max_downtime_ms: the longest pause at the switch-over QEMU may plan for.
        deadline_s: the whole migration's time.
        on_timeout: at the deadline, ``abort`` leaves the guest where it is; ``pause`` holds it
            still so that the rest crosses, however long that takes within reason; ``post_copy``
            lets it run on the destination and fetches the rest from there.
        bandwidth_mib_s: cap of the link; 0 for none.
        auto_converge: whether QEMU may throttle the guest so that the migration ends.
        post_copy: whether the guest may go on at the destination before all its memory is there;
            there is no way back from then on. Needs a shared pool whose locks work.
        parallel_connections: TCP connections that carry the memory side by side.
        tls: encrypt memory and disks on their way; None leaves it to the setting migration_tls,
            which may also forbid either.
        may_split_group: whether a guest of an affinity group may leave the others' host; they are
            expected to follow. An anti-affinity group is always obeyed.
    """

    dst: HostName | None = None
    storage: Storage = Storage.AUTO
    handover: Handover = Handover.SAFE
    max_downtime_ms: DowntimeMs = 300
    deadline_s: DeadlineS = 3600
    on_timeout: OnTimeout = "abort"
    bandwidth_mib_s: BandwidthMibS = 0
    auto_converge: bool = True
    post_copy: bool = False
    parallel_connections: Connections = 1
    tls: bool | None = None
    may_split_group: bool = False


class MigrationDefaults(Request):
    """What holds for a guest's migrations, or for all of them, where a request says nothing.

    Args:
        handover: see ``MigrationPolicy``, as for the others.
        max_downtime_ms: the longest pause at the switch-over.
        deadline_s: the whole migration's time.
        on_timeout: what to do at the deadline.
        bandwidth_mib_s: cap of the link; 0 for none.
        auto_converge: whether QEMU may throttle the guest.
        post_copy: whether the guest may go on before all its memory is there.
        parallel_connections: TCP connections side by side.
        tls: encrypt memory and disks on their way.
    """

    handover: Handover | None = None
    max_downtime_ms: DowntimeMs | None = None
    deadline_s: DeadlineS | None = None
    on_timeout: OnTimeout | None = None
    bandwidth_mib_s: BandwidthMibS | None = None
    auto_converge: bool | None = None
    post_copy: bool | None = None
    parallel_connections: Connections | None = None
    tls: bool | None = None


class MigrationChange(Request):
    """What may be changed while a migration waits or runs; what is left open stays as it is.

    Args:
        max_downtime_ms: the longest pause at the switch-over.
        deadline_s: the whole migration's time, from its beginning.
        on_timeout: what to do at the deadline.
        bandwidth_mib_s: cap of the link; 0 for none.
    """

    max_downtime_ms: DowntimeMs | None = None
    deadline_s: DeadlineS | None = None
    on_timeout: OnTimeout | None = None
    bandwidth_mib_s: BandwidthMibS | None = None
