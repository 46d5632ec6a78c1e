"""What a workflow is: a list of steps, and what the end of it means for the guest."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from sqlalchemy.orm import Session

from models.operation import Operation
from models.operations import PlannedStep

if TYPE_CHECKING:
    from tasks.context import StepContext


class On(StrEnum):
    """Where a step runs, relative to its operation."""

    CONTROL = "control"
    SRC = "src"
    DST = "dst"


@dataclass(frozen=True, slots=True)
class Done:
    """What a step hands back.

    Args:
        detail: JSON facts for the ledger, for later steps and for people.
        commit: runs in the transaction that records the step; for what must be true with it.
        rings_anew: whether the steps that follow have other hosts now, so that their chain is sent
            anew.
    """

    detail: dict[str, Any] = field(default_factory=dict)
    commit: Callable[[Session], None] | None = None
    rings_anew: bool = False


class RollForward(Exception):
    """An undo has found that its step cannot be undone any more: the operation goes on instead.

    Args:
        detail: the step's facts, as its own end would have recorded them.
        commit: runs in the transaction that turns the operation round.
    """

    def __init__(self, detail: dict[str, Any], commit: Callable[[Session], None]) -> None:
        self.detail = detail
        self.commit = commit
        super().__init__("the step cannot be undone any more")


class Parked(Exception):
    """A step has nothing to do until something has happened; it is begun again then.

    Args:
        waiting_for: what that is, for people.
        after_s: when it looks again in any case.
        still: asked in the transaction that parks the step; False when it has happened meanwhile.
    """

    def __init__(
        self, waiting_for: str, *, after_s: float, still: Callable[[Session], bool] | None = None
    ) -> None:
        self.waiting_for = waiting_for
        self.after_s = after_s
        self.still = still
        super().__init__(f"waits for {waiting_for}")


class Door(Protocol):
    """What lets only so many steps in at once."""

    def ask(self, session: Session, operation: Operation) -> str | None:
        """Ask for a step that is being claimed; a sentence means «not yet», and why."""

    def call(self, session: Session, operation: Operation) -> list[UUID]:
        """Call those who may come in now that an operation has left; return whom to ring for."""


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One step.

    Args:
        name: stands in the ledger and in the Celery task's name; stable for ever.
        on: which host's queue.
        do: probes, acts, verifies; safe to begin again at any point.
        undo: removes what the ledger says ``do`` made, or was about to make.
        intends: whether ``do`` writes every effect into the ledger before it has it: a step that
            failed and has written none made nothing, and is not undone.
        admit: the door of a step that only so many may do at once; asked in the claim's
            transaction, and told when the step after it is over.
        best_effort: comes after the point of no return; what it cannot do is owed, and the
            operation succeeds without it.
        max_failures: how often it may fail before it fails for good; a worker that is lost in the
            middle counts as a failure, but ten of those are granted to every step.
        is_harmless: leaves nothing that is the guest's, however it ends.
        cleans_up_only: its undo (or, of a best-effort step, itself) only removes what bears this
            operation's mark, so the guest may go on while it is still owed.
        may_be_passed_over: whether the operation goes on without it while its host is down.
        renews: name of an earlier step whose look is made anew when the outcome is unclear.
        wanted_by: told the guest's spec as its row has it; False leaves the step out of the plan.
            None plans it for every guest.
    """

    name: str
    on: On
    do: "Callable[[StepContext], Done]"
    undo: "Callable[[StepContext], None] | None" = None
    intends: bool = False
    admit: Door | None = None
    best_effort: bool = False
    max_failures: int = 5
    is_harmless: bool = False
    cleans_up_only: bool = False
    may_be_passed_over: bool = False
    renews: str | None = None
    wanted_by: Callable[[Mapping[str, Any]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Workflow:
    """A verb.

    Args:
        kind: the operation's kind; task names are ``innkeeper.<kind>.<step>``.
        steps: in order.
        on_success: settles the guest in the ending transaction; returns the operation's result.
        on_failure: settles the guest after everything was undone.
        on_unknown: writes down that nobody knows where the guest is, or whether it is; the
            steps that would tell are owed.
        replan: may answer a failure with another host: writes it into the operation and returns
            True; the steps are planned anew for it.
        may_fail_late: whether it may still fail after its point of no return; False where the
            guest would then be nowhere, so that the steps are tried for ever.
        waits_for_host: whether a host whose libvirt is away is waited for until the deadline;
            False where another host can do the work as well.
    """

    kind: str
    steps: tuple[StepSpec, ...]
    on_success: Callable[[Session, Operation], dict[str, Any]]
    on_failure: Callable[[Session, Operation], None]
    on_unknown: Callable[[Session, Operation], None] = lambda _session, _operation: None
    replan: Callable[[Session, Operation], bool] | None = None
    may_fail_late: bool = False
    waits_for_host: bool = True

    def get_step(self, name: str) -> StepSpec:
        """Get a step by its name.

        Raises:
            KeyError: the ledger names a step that this release does not have.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"{self.kind} has no step {name!r}")

    @property
    def undoable(self) -> frozenset[str]:
        """Names of the steps that leave something to undo."""
        return frozenset(step.name for step in self.steps if step.undo is not None)

    @property
    def intending(self) -> frozenset[str]:
        """Names of the steps whose ledger tells whether they have begun to make anything."""
        return frozenset(step.name for step in self.steps if step.intends)

    def find_doors_left(self, name: str) -> list[Door]:
        """Return the doors of which an operation is told to have left them once a step is done.

        That is when the step after the admitted one is done: in between nothing may take time from
        a guest that is held still.
        """
        names = [step.name for step in self.steps]
        at = names.index(name)
        is_last = at == len(names) - 1
        left = self.steps[at - 1 : at] + (self.steps[at : at + 1] if is_last else ())
        return [step.admit for step in left if step.admit is not None]

    @property
    def doors(self) -> list[Door]:
        """The doors of all its steps."""
        return [step.admit for step in self.steps if step.admit is not None]

    def plan(
        self, *, src: str | None, dst: str | None, spec: Mapping[str, Any] | None = None
    ) -> list[PlannedStep]:
        """Return the steps with the hosts that will do them.

        Args:
            src: the source host.
            dst: the destination, or the only host.
            spec: the guest's, as its row has it; steps that it does not want are left out.
        """
        hosts = {On.CONTROL: None, On.SRC: src, On.DST: dst}
        return [
            PlannedStep(step.name, hosts[step.on])
            for step in self.steps
            if step.wanted_by is None or step.wanted_by(spec or {})
        ]


class Workflows:
    """The workflows that this release knows, by kind."""

    def __init__(self, *workflows: Workflow) -> None:
        self._by_kind = {workflow.kind: workflow for workflow in workflows}

    def __getitem__(self, kind: str) -> Workflow:
        return self._by_kind[kind]

    def __iter__(self) -> Iterator[Workflow]:
        return iter(self._by_kind.values())


def queue_for(host: str | None) -> str:
    """Return the queue of a host's worker, or the control queue for None."""
    return "control" if host is None else f"host.{host}"


def task_name(kind: str, step: str, *, is_undo: bool) -> str:
    """Return the Celery task name of a step."""
    return f"innkeeper.{kind}.{step}" + (".undo" if is_undo else "")


@dataclass(frozen=True, slots=True)
class Ring:
    """A message to send: which step, on whose queue."""

    operation_id: UUID
    position: int
    kind: str
    step: str
    host: str | None
    is_undo: bool
    summary: str
