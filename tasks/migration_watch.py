"""Watches a running migration: shows it, judges each pass, and acts on what was decided."""

import time
from dataclasses import replace

from innkeeper.errors import (
    Cancelled,
    DeadlineExceeded,
    HypervisorUnavailable,
    InnkeeperError,
    MigrationTimeout,
)
from innkeeper.types import MigrationPolicy
from models.migrations import append_decision
from tasks.context import StepContext
from tasks.convergence import Act, Course, Decision, Figures, Limits, decide
from tasks.forecast import MIB, estimate_left_s
from virt.migration import MigrationJob
from virt.views import JobStats

WATCH_INTERVAL_S = 0.5
ABORT_PATIENCE_S = 30.0


class MigrationWatch:
    """Sees one attempt's migration to its end.

    Args:
        context: the step.
        policy: what the caller allows.
    """

    def __init__(self, context: StepContext, policy: MigrationPolicy) -> None:
        self._context = context
        self._policy = policy
        self._limits = Limits(policy.max_downtime_ms, policy.deadline_s, policy.on_timeout)
        self._started = time.monotonic()
        self._fraction = 0.0
        self._stop: InnkeeperError | None = None
        self._course = Course()
        if context.step.undo.get("paused"):
            # An attempt before this one has paused the guest; its patience begins anew.
            self._course = replace(self._course, paused_at_s=0.0)

    def see(self, job: MigrationJob) -> InnkeeperError | None:
        """Wait for a job of this process; return why it failed, None when it did not.

        Raises:
            HypervisorUnavailable: it does not end although it was aborted.
            LeaseLost: the step is another worker's; the job is left alone.
        """
        give_up_at = float("inf")
        while not job.wait(WATCH_INTERVAL_S):
            if self._look() is not None and give_up_at == float("inf"):
                give_up_at = time.monotonic() + ABORT_PATIENCE_S
            if time.monotonic() > give_up_at:
                raise HypervisorUnavailable(
                    "Libvirt did not end the migration job after it was aborted.",
                    {"host": self._context.host.name},
                )
        return None if job.error is None else self._stop or job.error

    def see_adopted(self) -> InnkeeperError | None:
        """Wait for a job that a dead predecessor began; nobody will return its error to us."""
        hypervisor, instance_id = self._context.host.hypervisor, self._context.instance.id
        with hypervisor.watch(instance_id) as watch:
            while True:
                view = hypervisor.find_domain(instance_id)
                if view is None or hypervisor.find_migration_job(instance_id) is None:
                    return self._stop
                self._look()
                watch.wait(WATCH_INTERVAL_S)

    def _look(self) -> InnkeeperError | None:
        """Look once; return why the job was aborted, None while it goes on."""
        if self._stop is not None:
            return self._stop
        try:
            self._context.checkpoint()
        except (Cancelled, DeadlineExceeded) as exc:
            self._abort(exc)
            return exc
        stats = self._find_stats()
        figures = read_figures(stats, elapsed_s=time.monotonic() - self._started)
        self._course, decision = decide(self._limits, self._course, figures)
        if decision is not None:
            self._act(decision)
        if self._stop is None and stats is not None:
            self._show(stats, figures)
        return self._stop

    def _act(self, decision: Decision) -> None:
        context = self._context
        instance_id, hypervisor = context.instance.id, context.host.hypervisor
        context.note(decision.why)
        told = {"act": decision.act.value, "why": decision.why}
        context.database.run(lambda session: append_decision(session, context.operation.id, told))
        if decision.act is Act.ABORT:
            self._abort(
                MigrationTimeout(
                    f"The migration did not end within {self._policy.deadline_s:.0f} s."
                    f" {decision.why}",
                    {"limit_s": self._policy.deadline_s},
                )
            )
            return
        try:
            if decision.act is Act.RAISE_DOWNTIME and decision.downtime_ms is not None:
                hypervisor.set_max_downtime(instance_id, decision.downtime_ms)
            elif decision.act is Act.PAUSE:
                context.intend(paused=True)
                hypervisor.ensure_suspended(instance_id)
        except HypervisorUnavailable:
            raise
        except InnkeeperError as exc:
            # It has ended in this moment, which is what was wanted.
            context.log.info("decision not carried out", act=told["act"], reason=str(exc))

    def _abort(self, why: InnkeeperError) -> None:
        self._stop = why
        abort(self._context)

    def _find_stats(self) -> JobStats | None:
        try:
            return self._context.host.hypervisor.find_migration_job(self._context.instance.id)
        except InnkeeperError:
            return None

    def _show(self, stats: JobStats, figures: Figures) -> None:
        memory_bytes = stats.memory_total_bytes or self._context.instance.memory_mib * MIB
        self._fraction = max(self._fraction, done_share(stats, memory_bytes))
        left_s = estimate_left_s(
            remaining_bytes=stats.memory_remaining_bytes,
            link_bytes_s=figures.link_bytes_s,
            dirty_bytes_s=figures.dirty_bytes_s,
            max_downtime_ms=self._policy.max_downtime_ms,
        )
        self._context.progress(
            self._fraction, describe(stats, left_s), **stats.to_json(), eta_s=left_s
        )


def abort(context: StepContext) -> None:
    """Ask libvirt to stop; a job that has just ended is fine."""
    try:
        context.host.hypervisor.abort_job(context.instance.id)
    except HypervisorUnavailable:
        raise
    except InnkeeperError as exc:
        context.log.info("abort refused", reason=str(exc))


def read_figures(stats: JobStats | None, *, elapsed_s: float) -> Figures:
    """Return what the schedule judges by; without figures only the time counts.

    Args:
        stats: what libvirt says now; None when it says nothing.
        elapsed_s: since this attempt began; the job's own time, when longer, is the truth.
    """
    if stats is None:
        return Figures(elapsed_s)
    return Figures(
        elapsed_s=max(elapsed_s, stats.time_elapsed_ms / 1000),
        iteration=stats.memory_iteration,
        remaining_bytes=stats.memory_remaining_bytes,
        link_bytes_s=float(stats.memory_bytes_s),
        dirty_bytes_s=float(stats.memory_dirty_bytes_s),
        throttle_percent=stats.throttle_percent,
    )


def done_share(stats: JobStats, memory_bytes: int) -> float:
    """Return how much of the guest is on the other side, 0…0.99.

    Args:
        stats: what libvirt says now.
        memory_bytes: the guest's memory, which libvirt does not tell while it copies disks.
    """
    total = stats.disk_total_bytes + memory_bytes
    moved = stats.disk_processed_bytes
    if stats.memory_total_bytes:
        moved += max(stats.memory_total_bytes - stats.memory_remaining_bytes, 0)
    return min(moved / total, 0.99) if total else 0.0


def describe(stats: JobStats, left_s: float | None) -> str:
    """Return one line for people."""
    if stats.phase == "disks":
        done, total = stats.disk_processed_bytes / MIB, stats.disk_total_bytes / MIB
        return f"disks: {done:.0f} of {total:.0f} MiB, {stats.disk_bytes_s / MIB:.0f} MiB/s"
    if not stats.memory_total_bytes:
        return "the destination gets ready"
    text = (
        f"memory, pass {stats.memory_iteration}: {stats.memory_remaining_bytes / MIB:.0f} of"
        f" {stats.memory_total_bytes / MIB:.0f} MiB left, {stats.memory_bytes_s / MIB:.0f} MiB/s"
    )
    if stats.memory_dirty_bytes_s:
        text += f", dirties {stats.memory_dirty_bytes_s / MIB:.0f} MiB/s"
    if stats.throttle_percent:
        text += f", slowed by {stats.throttle_percent} %"
    if left_s is not None:
        return f"{text}, about {left_s:.0f} s more"
    return f"{text}, will not converge so" if stats.memory_iteration > 1 else text
