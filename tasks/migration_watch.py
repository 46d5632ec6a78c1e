"""Watches a running migration: shows it, judges each pass, heeds wishes, acts on decisions."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from innkeeper.errors import (
    Cancelled,
    DeadlineExceeded,
    HypervisorUnavailable,
    InnkeeperError,
    MigrationTimeout,
)
from innkeeper.types import MigrationPolicy
from models.migrations import (
    POST_COPY,
    append_decision,
    enter_post_copy,
    extend_deadline,
    set_migration,
)
from tasks.context import StepContext
from tasks.convergence import Act, Course, Decision, Figures, Limits, decide, list_downtimes_ms
from tasks.forecast import MIB
from tasks.migration_link import LinkWatch, cut_link, probe_destination
from tasks.migration_meter import Meter, read_figures
from tasks.migration_policy import policy_of
from tasks.post_copy import commit_post_copy, may_post_copy
from virt.migration import MigrationJob
from virt.views import JobStats, job_stats
from virt.watch import GuestWatch

WATCH_INTERVAL_S = 0.5
ABORT_PATIENCE_S = 30.0
# For a destination whose QEMU does not answer libvirt waits 30 s for its turn, or for ever.
BROKEN_PATIENCE_S = 40.0
# A connection that moved nothing for so long still waits for TCP to send again.
STILL_S = 3.0
# A migration's last event travels on its own; it may come a moment after the domain has gone.
EVENT_GRACE_S = 1.0
# What the hypervisor is told of a policy while it migrates.
TOLD = ("bandwidth_mib_s", "max_downtime_ms")
# The most that libvirt takes; 0 would mean none at all to some releases of QEMU.
NO_CAP_MIB_S = (1 << 43) - 1
# What the settling takes at most, beside the copying itself.
SETTLING_S = 180.0


class MigrationWatch:
    """Sees one attempt's migration to its end.

    Args:
        context: the step.
        policy: what the job was begun with, or was told last.
    """

    def __init__(self, context: StepContext, policy: MigrationPolicy) -> None:
        self._context = context
        self._policy = policy
        self._started = time.monotonic()
        self._meter = Meter(context.instance.memory_mib * MIB)
        self._stop: InnkeeperError | None = None
        # An attempt before this one may have paused the guest.
        self._course = Course(is_paused=bool(context.step.undo.get("paused")))
        self._phase: str | None = None
        self._broken_since: float | None = None
        self._link = LinkWatch(partial(probe_destination, context), partial(cut_link, context))
        if context.operation.is_committed:
            self._course = replace(self._course, is_post_copy=True)
        self.completed_stats: JobStats | None = None

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
            if self._is_stuck_in_post_copy():
                job.abandon()
                return HypervisorUnavailable(
                    f"For {BROKEN_PATIENCE_S:.0f} s libvirt has neither taken the post-copy up nor"
                    f" given it up: QEMU or libvirtd on {self._context.operation.dst_host} does"
                    " not answer.",
                    {"host": self._context.operation.dst_host},
                )
            if time.monotonic() > give_up_at:
                raise HypervisorUnavailable(
                    "Libvirt did not end the migration job after it was aborted.",
                    {"host": self._context.host.name},
                )
        self.completed_stats = job.completed_stats
        return None if job.error is None else self._stop or job.error

    def see_adopted(self, *, is_broken: bool = False) -> InnkeeperError | None:
        """Wait for a job that a dead predecessor began; nobody will return its error to us.

        Args:
            is_broken: libvirt has given the post-copy up; QEMU is watched while it goes on with it.
        """
        hypervisor, instance_id = self._context.host.hypervisor, self._context.instance.id
        remaining_bytes, moved_at = -1, time.monotonic()
        with hypervisor.watch(instance_id) as watch:
            while True:
                view = hypervisor.find_domain(instance_id)
                stats = hypervisor.find_migration_job(instance_id)
                if view is None or stats is None:
                    self._collect_stats(watch, EVENT_GRACE_S)
                    return self._stop
                if stats.memory_remaining_bytes != remaining_bytes:
                    remaining_bytes, moved_at = stats.memory_remaining_bytes, time.monotonic()
                is_still = time.monotonic() - moved_at > STILL_S
                if view.has_broken_post_copy and (not is_broken or is_still):
                    return self._stop
                self._look()
                self._collect_stats(watch, WATCH_INTERVAL_S)

    def _collect_stats(self, watch: GuestWatch, timeout_s: float) -> None:
        """Wait for the guest's next event; keep the final figures if it is the one with them."""
        if self.completed_stats is not None:
            return
        event = watch.wait(timeout_s)
        if event is not None and event.kind == "job_completed":
            self.completed_stats = job_stats(event.params)

    def _look(self) -> InnkeeperError | None:
        """Look once; return why the job was aborted, None while it goes on."""
        if self._stop is not None:
            self._see_link(None)
            return self._stop
        if self._course.is_post_copy:
            return self._look_at_post_copy()
        try:
            self._context.checkpoint()
            stats = self._find_stats()
            self._see_link(stats)
            figures = self._figures(stats)
            self._show(stats)
        except (Cancelled, DeadlineExceeded) as exc:
            self._abort(exc)
            return exc
        if figures.iteration:
            self._heed_changes()
        self._course, decision = decide(self._limits(), self._course, figures)
        if decision is not None:
            self._act(decision, figures)
        return self._stop

    def _see_link(self, stats: JobStats | None) -> None:
        said = self._link.see(stats)
        if said is not None:
            self._context.note(said)

    def _look_at_post_copy(self) -> InnkeeperError | None:
        context = self._context
        if not context.operation.is_committed:
            view = context.host.hypervisor.find_domain(context.instance.id)
            if view is not None and view.is_in_post_copy:
                commit_post_copy(context)
        context.assert_owned()
        stats = self._find_stats()
        if stats is not None:
            stats = replace(stats, phase="postcopy")
        try:
            self._show(stats)
        except (Cancelled, DeadlineExceeded) as exc:
            # Too late: there is no way but on.
            context.log.info("not stopped in post-copy", reason=str(exc))
        self._heed_changes()
        return None

    def _is_stuck_in_post_copy(self) -> bool:
        if not self._course.is_post_copy:
            return False
        context = self._context
        try:
            view = context.host.hypervisor.find_domain(context.instance.id)
        except InnkeeperError:
            # The job's own call says it, if its libvirtd has died.
            return False
        if view is None or not view.has_broken_post_copy:
            self._broken_since = None
            return False
        if self._broken_since is None:
            self._broken_since = time.monotonic()
        return time.monotonic() - self._broken_since > BROKEN_PATIENCE_S

    def _limits(self) -> Limits:
        policy = self._policy
        return Limits(
            policy.max_downtime_ms,
            policy.deadline_s,
            policy.on_timeout,
            may_post_copy(self._context, policy),
            self._context.force_complete_by,
        )

    def _figures(self, stats: JobStats | None) -> Figures:
        return read_figures(stats, elapsed_s=time.monotonic() - self._started)

    def _heed_changes(self) -> None:
        """Tell the hypervisor what somebody has changed of the policy since it was told."""
        context, wanted = self._context, policy_of(self._context.operation.params)
        if wanted == self._policy:
            return
        hypervisor, instance_id = context.host.hypervisor, context.instance.id
        origins = context.operation.params.get("policy_from") or {}
        changed: dict[str, Any] = {}
        said = []
        for name in type(wanted).model_fields:
            before, after = getattr(self._policy, name), getattr(wanted, name)
            if before != after:
                changed[name] = after
                said.append(f"{name} is {after} instead of {before}, {origins.get(name)}")
        try:
            if "bandwidth_mib_s" in changed:
                mib_s = wanted.bandwidth_mib_s or NO_CAP_MIB_S
                if may_post_copy(context, wanted):
                    hypervisor.set_bandwidth(instance_id, wanted.bandwidth_mib_s, post_copy=True)
                hypervisor.set_bandwidth(instance_id, mib_s)
            if "max_downtime_ms" in changed and not self._course.is_post_copy:
                hypervisor.set_max_downtime(instance_id, wanted.max_downtime_ms)
                last = len(list_downtimes_ms(wanted.max_downtime_ms)) - 1
                self._course = replace(self._course, downtime_step=last)
        except HypervisorUnavailable:
            raise
        except InnkeeperError as exc:
            context.log.info("change not carried out", changed=changed, reason=str(exc))
        if "bandwidth_mib_s" in changed and self._course.is_paused:
            # What the rest takes is another question now.
            self._course = replace(self._course, paused_until_s=None)
        self._policy = wanted
        told = {"act": "set", "why": "; ".join(said) + ".", "set": changed}
        applied = {name: getattr(wanted, name) for name in TOLD}

        def record(session: Session) -> None:
            append_decision(session, context.operation.id, told)
            set_migration(session, context.operation.id, applied=applied)

        context.database.run(record)
        context.note(str(told["why"]))

    def _act(self, decision: Decision, figures: Figures) -> None:
        context = self._context
        instance_id, hypervisor = context.instance.id, context.host.hypervisor
        if decision.act is Act.POST_COPY and not self._enter_post_copy(figures):
            self._course = replace(self._course, is_post_copy=False)
            return
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
                takes_s = (self._course.paused_until_s or 0.0) - figures.elapsed_s + SETTLING_S
                context.database.run(
                    lambda session: extend_deadline(session, context.operation.id, takes_s=takes_s)
                )
                hypervisor.ensure_suspended(instance_id)
            elif decision.act is Act.POST_COPY:
                hypervisor.start_post_copy(instance_id)
        except HypervisorUnavailable:
            raise
        except InnkeeperError as exc:
            # It has ended in this moment, which is what was wanted.
            context.log.info("decision not carried out", act=told["act"], reason=str(exc))

    def _enter_post_copy(self, figures: Figures) -> bool:
        """Close the way back for everybody else; False when a cancel came first."""
        rest_s = figures.remaining_bytes / figures.link_bytes_s if figures.link_bytes_s else 0.0
        self._phase = POST_COPY
        operation_id = self._context.operation.id
        return self._context.database.run(
            lambda session: enter_post_copy(
                session, operation_id, takes_s=2 * rest_s + 2 * SETTLING_S
            )
        )

    def _abort(self, why: InnkeeperError) -> None:
        self._stop = why
        abort(self._context)

    def _find_stats(self) -> JobStats | None:
        try:
            return self._context.host.hypervisor.find_migration_job(self._context.instance.id)
        except InnkeeperError:
            return None

    def _show(self, stats: JobStats | None) -> None:
        if stats is not None and stats.phase in ("disks", "memory") and stats.phase != self._phase:
            self._phase = phase = stats.phase
            operation_id = self._context.operation.id
            self._context.database.run(
                lambda session: set_migration(session, operation_id, phase=phase)
            )
        reading = self._meter.read(stats, max_downtime_ms=self._policy.max_downtime_ms)
        figures = {} if stats is None else {**stats.to_json(), "eta_s": reading.eta_s}
        self._context.progress(reading.fraction, reading.text, **figures)


def abort(context: StepContext) -> None:
    """Ask libvirt to stop; a job that has just ended is fine."""
    try:
        context.host.hypervisor.abort_job(context.instance.id)
    except HypervisorUnavailable:
        raise
    except InnkeeperError as exc:
        context.log.info("abort refused", reason=str(exc))
