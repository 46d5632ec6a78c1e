"""What running a step needs, what a claimed step is, and what may come of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID

from innkeeper.migration_types import MigrationDefaults
from models.instance import Instance
from models.ledger import ClaimedStep
from models.operation import Operation
from models.session import Database
from tasks.bells import Bells
from tasks.context import HostServices, name_boundary
from tasks.fencing_hook import FencingHook
from tasks.keyring import Keyring
from tasks.leases import LeaseKeeper
from tasks.own_queue import OwnQueue
from tasks.tls_rule import TlsRule
from tasks.workflow import StepSpec, Workflow, Workflows


class Verdict(Enum):
    """What the Celery task does next: return, so that the next link is rung, or fall silent."""

    PASS_ON = auto()
    IGNORE = auto()


@dataclass(frozen=True, slots=True)
class Engine:
    """What running a step needs; built once per process by the composition root.

    Args:
        database: where the ledger is.
        workflows: what this release can do.
        leases: keeps the claimed steps.
        bells: rings for the next ones.
        services: the hypervisor's parts; None for control.
        look_again: has a guest's power state read once more, after an operation on it has failed:
            what its domain did meanwhile was the operation's business.
        tls_rule: which migrations' wishes for TLS are accepted.
        keyring: opens what callers have sealed.
        fencing_hook: switches hosts off; None where that is done by hand.
        migration_defaults: what the settings say of migrations; read where requests are taken on.
        own_queue: the worker's way to itself.
    """

    database: Database
    workflows: Workflows
    leases: LeaseKeeper
    bells: Bells
    services: HostServices | None
    look_again: Callable[[UUID], None] = lambda _instance_id: None
    tls_rule: TlsRule = TlsRule.ALLOWED
    keyring: Keyring = field(default_factory=Keyring)
    fencing_hook: FencingHook | None = None
    migration_defaults: MigrationDefaults = field(default_factory=MigrationDefaults)
    own_queue: OwnQueue = field(default_factory=OwnQueue)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed step with the rows it works on, read in the claim's transaction."""

    step: ClaimedStep
    operation: Operation
    instance: Instance | None
    details: dict[str, dict[str, object]]
    workflow: Workflow
    spec: StepSpec

    @property
    def where(self) -> str:
        """The step's name in the list of crash points."""
        return name_boundary(self.operation.kind, self.step)
