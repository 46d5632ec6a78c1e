"""What crosses the wire: requests and views, typed, validated, JSON both ways.

Fields are only ever added, with defaults; unknown fields of a view are ignored so that an older
client reads a newer control worker's answers. Requests forbid unknown fields: a typing error in a
field's name must not pass for a default.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import Field, ValidationError

from innkeeper.errors import InvalidRequest
from innkeeper.guest_spec import InstanceSpec
from innkeeper.messages import Request, View
from innkeeper.migration_types import MigrationChange, MigrationDefaults, MigrationPolicy
from innkeeper.states import BootStage, InstanceState, OperationState, PowerState

__all__ = [
    "CheckOutcome",
    "DestinationCheck",
    "GroupMember",
    "GroupView",
    "HostView",
    "InstanceSpec",
    "InstanceView",
    "MigrationCheck",
    "MigrationChange",
    "MigrationDefaults",
    "MigrationPolicy",
    "OperationView",
    "PartView",
    "Progress",
    "RebootPolicy",
    "Request",
    "StepView",
    "StopPolicy",
    "View",
    "parse_request",
]

T = TypeVar("T", bound=Request)


class StopPolicy(Request):
    """How to stop a guest: ACPI first, force after ``grace_s``; ``force`` skips the grace."""

    force: bool = False
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 60


class RebootPolicy(Request):
    """How to reboot: ``hard`` cuts the power; ``soft`` asks, and turns hard after ``grace_s``."""

    kind: Literal["soft", "hard"] = "soft"
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 60


class Progress(View):
    """How far an operation is. ``fraction`` is 0…1, never goes back; figures are the step's own."""

    step: str | None = None
    fraction: float = 0.0
    text: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)


class DiskView(View):
    """One disk of a guest; ``is_remote`` while it still reads from an image's source.

    ``pool`` is None where the control worker is of a release that does not tell.
    """

    target: str
    kind: str
    bus: str
    format: str
    size_bytes: int
    serial: str | None = None
    pool: str | None = None
    is_remote: bool = False


class CardView(View):
    """One network card of a guest; ``mac`` is None until it is decided."""

    bridge: str
    mac: str | None = None
    model: str = "virtio"
    addresses: list[str] = Field(default_factory=list)


class InstanceView(View):
    """A guest as its record says."""

    id: UUID
    name: str
    state: InstanceState
    power_state: PowerState
    power_observed_at: datetime | None = None
    host: str | None = None
    vcpus: int
    memory_mib: int
    disk_gib: int
    pool: str
    image: str
    epoch: int
    operation_id: UUID | None = None
    task: str | None = None
    waiting_for: str | None = None
    boot_stage: BootStage | None = None
    group: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    disks: list[DiskView] = Field(default_factory=list)
    network_cards: list[CardView] = Field(default_factory=list)
    machine: str | None = None
    cpu_model: str | None = None
    firmware: str = "bios"
    created_at: datetime
    updated_at: datetime


class StepView(View):
    """One entry of an operation's ledger.

    ``waiting_for`` says why it is not begun; ``waiting_since`` is its ticket, where it had to stand
    in line, and stays when it has gone in.
    """

    position: int
    name: str
    host: str | None = None
    state: str
    attempt: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    elapsed_ms: float | None = None
    detail: dict[str, Any] = Field(default_factory=dict)
    error: dict[str, Any] | None = None
    waiting_for: str | None = None
    waiting_since: datetime | None = None
    log: list[dict[str, Any]] = Field(default_factory=list)


class PartView(View):
    """An operation that is a part of another: a guest's move in the drain of its host."""

    operation_id: UUID
    kind: str
    state: OperationState
    instance_name: str | None = None
    dst_host: str | None = None
    fraction: float = 0.0
    text: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: dict[str, Any] | None = None


class MigrationView(View):
    """A migration's facts beside its operation's.

    ``policy`` tells of each field ``{value, from}``: the request, the instance, the settings, the
    default, or who changed it since. ``decisions`` are those taken while it ran, with figures.
    """

    phase: str
    outcome: str | None = None
    storage: str | None = None
    policy: dict[str, dict[str, Any]] = Field(default_factory=dict)
    force_complete_requested: bool = False
    forecast: dict[str, Any] | None = None
    decisions: list[dict[str, Any]] = Field(default_factory=list)
    total_ms: float | None = None
    downtime_ms: float | None = None
    stats: dict[str, Any] = Field(default_factory=dict)


class OperationView(View):
    """An operation and, in ``steps``, its timeline.

    ``refusals`` tells for each host that was not taken ``{host, code, message}``; ``parent_id`` is
    the operation that this one is a part of, and ``parts`` are its own; ``parts`` and
    ``migration`` are told where one operation is asked for, and not in lists.
    """

    id: UUID
    kind: str
    state: OperationState
    instance_id: UUID | None = None
    instance_name: str | None = None
    src_host: str | None = None
    dst_host: str | None = None
    requested_by: str | None = None
    reason: str | None = None
    parent_id: UUID | None = None
    cancel_requested: bool = False
    progress: Progress = Progress()
    refusals: list[dict[str, Any]] = Field(default_factory=list)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    owes_since: datetime | None = None
    migration: MigrationView | None = None
    steps: list[StepView] = Field(default_factory=list)
    parts: list[PartView] = Field(default_factory=list)


class CheckOutcome(View):
    """One check of a migration; ``host`` is the one that looked."""

    check: str
    passed: bool
    host: str | None = None
    code: str | None = None
    message: str = ""
    hint: str = ""


class DestinationCheck(View):
    """What speaks for and against one destination."""

    host: str
    passed: bool
    checks: list[CheckOutcome] = Field(default_factory=list)


class MigrationCheck(View):
    """The result of ``check_migration``; destinations stand best first."""

    instance: str
    src: str
    can_migrate: bool
    destinations: list[DestinationCheck] = Field(default_factory=list)


class HostView(View):
    """A hypervisor as its worker last reported it."""

    name: str
    uuid: UUID
    is_up: bool
    is_enabled: bool
    disabled_reason: str | None = None
    disabled_by: str | None = None
    heartbeat_at: datetime | None = None
    fenced_at: datetime | None = None
    libvirt_version: str | None = None
    qemu_version: str | None = None
    cpu_model: str | None = None
    vcpus_total: int = 0
    vcpus_claimed: int = 0
    memory_total_mib: int = 0
    memory_claimed_mib: int = 0
    disk_total_gib: int = 0
    disk_claimed_gib: int = 0
    instances: int = 0


class GroupMember(View):
    """A guest of a server group."""

    name: str
    host: str | None = None
    state: InstanceState


class GroupView(View):
    """A server group with its living members."""

    name: str
    policy: str
    members: list[GroupMember] = Field(default_factory=list)


def parse_request(cls: type[T], fields: Any) -> T:
    """Validate a caller's fields.

    Args:
        cls: the request's type.
        fields: what the caller sent, of any JSON type.

    Raises:
        InvalidRequest: with every problem at once, each with its path.
    """
    try:
        return cls.model_validate(fields)
    except ValidationError as exc:
        problems = [
            {"path": ".".join(str(part) for part in e["loc"]) or "(request)", "message": e["msg"]}
            for e in exc.errors(include_url=False, include_input=False, include_context=False)
        ]
        listing = "; ".join(f"{p['path']}: {p['message']}" for p in problems)
        raise InvalidRequest(
            f"The request is not valid ({listing}).", {"problems": problems}
        ) from None
