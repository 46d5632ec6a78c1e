"""Keeps the leases of all of a process's steps with one statement every few seconds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from models.ledger import LEASE_S, StepKey, renew_leases
from models.session import Database

log = structlog.get_logger(__name__)


class HeldLease:
    """What the keeper knows of one held step; the step's thread reads it at checkpoints."""

    def __init__(self, key: StepKey) -> None:
        self.key = key
        self.lost = threading.Event()
        self.changed = threading.Event()
        self.cancel_requested = False
        self.is_past_deadline = False

    def tell(self, *, cancel_requested: bool, is_past_deadline: bool) -> None:
        """Take over what the database said of the operation."""
        self.cancel_requested = self.cancel_requested or cancel_requested
        self.is_past_deadline = self.is_past_deadline or is_past_deadline
        if self.cancel_requested or self.is_past_deadline:
            self.changed.set()


class LeaseKeeper:
    """Renews leases from one thread.

    A lease that could not be renewed for its whole length counts as lost here too: by then the
    database may have given the step to another worker.

    Args:
        database: where the ledger is.
        owner: this process, ``node#uuid``.
        lease_s: length of a lease; it is renewed at a fifth of it.
    """

    def __init__(self, database: Database, owner: str, *, lease_s: float = LEASE_S) -> None:
        self.owner = owner
        self.lease_s = lease_s
        self._database = database
        self._held: dict[StepKey, HeldLease] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._unheard_s = 0.0
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    def start(self) -> None:
        """Begin renewing."""
        self._thread.start()

    def stop(self) -> None:
        """End renewing; steps still held will run out."""
        self._stop.set()

    @contextmanager
    def hold(self, key: StepKey) -> Iterator[HeldLease]:
        """Keep a claimed step's lease for the length of the block."""
        lease = HeldLease(key)
        with self._guard:
            self._held[key] = lease
        try:
            yield lease
        finally:
            with self._guard:
                del self._held[key]

    def _keep(self) -> None:
        interval_s = self.lease_s / 5
        while not self._stop.wait(interval_s):
            with self._guard:
                held = dict(self._held)
            if not held:
                self._unheard_s = 0.0
                continue
            try:
                with self._database.transaction() as session:
                    answers = renew_leases(
                        session, list(held), owner=self.owner, lease_s=self.lease_s
                    )
            except SQLAlchemyError as exc:
                self._unheard_s += interval_s
                log.warning("leases not renewed", error=str(exc), unheard_s=self._unheard_s)
                if self._unheard_s >= self.lease_s:
                    for lease in held.values():
                        lease.lost.set()
                continue
            self._unheard_s = 0.0
            by_key = {(a.operation_id, a.position, a.attempt): a for a in answers}
            for key, lease in held.items():
                answer = by_key.get((key.operation_id, key.position, key.attempt))
                if answer is None:
                    self._lose_unless_released(key, lease)
                else:
                    lease.tell(
                        cancel_requested=answer.cancel_requested,
                        is_past_deadline=answer.is_past_deadline,
                    )

    def _lose_unless_released(self, key: StepKey, lease: HeldLease) -> None:
        with self._guard:
            is_held = key in self._held
        if is_held:
            log.warning("lease lost", operation=str(key.operation_id), position=key.position)
            lease.lost.set()
            lease.changed.set()
