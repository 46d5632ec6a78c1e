"""Turns libvirt's lifecycle events into records, outside libvirt's own thread.

An event is a hint to look: the guest's domain is read anew and compared with its record, so that
late, doubled and reordered events do no harm.
"""

import queue
import threading
from uuid import UUID

import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from innkeeper.errors import InnkeeperError
from tasks.bells import UNREACHABLE
from tasks.chores import LOOK_AFTER_SOURCES, request_verb_by, sync_this_host
from tasks.engine import Engine
from tasks.power_sync import sync_host
from tasks.workflow import queue_for
from virt.events import GuestEvent
from virt.views import DomainView

log = structlog.get_logger(__name__)

POWER_KINDS = frozenset({"started", "resumed", "suspended", "stopped", "crashed", "pmsuspended"})
RETRY_S = 1.0
GATHER_S = 0.1


class EventPump:
    """One thread that follows a host's events.

    Args:
        app: to enqueue what a power policy asks for.
        engine: this process's engine.
    """

    def __init__(self, app: Celery, engine: Engine) -> None:
        self._engine = engine
        self._request_verb = request_verb_by(app)
        # None stands for «look at everything».
        self._wanted: queue.Queue[UUID | None] = queue.Queue()
        self._stop = threading.Event()
        self._io_errors = threading.Event()
        self._app = app
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin following."""
        self._thread.start()

    def stop(self) -> None:
        """End following; what was missed is found by the next full sync."""
        self._stop.set()
        self._wanted.put(None)

    def put(self, event: GuestEvent) -> None:
        """Take an event; called from libvirt's event loop, so it only enqueues."""
        if event.kind in POWER_KINDS:
            self._wanted.put(event.instance_id)
        if event.kind == "suspended" and event.detail == "io_error":
            self._io_errors.set()

    def look_at(self, instance_id: UUID) -> None:
        """Ask for a look at one guest."""
        self._wanted.put(instance_id)

    def request_full_sync(self) -> None:
        """Ask for a look at every domain, after a (re)connection has lost events."""
        self._wanted.put(None)

    def _run(self) -> None:
        while not self._stop.is_set():
            wanted = self._wanted.get()
            # A start or a stop sends several events at once: one look answers them all, and it
            # stays out of the way of the step that caused them.
            self._stop.wait(GATHER_S)
            if self._stop.is_set():
                return
            if self._io_errors.is_set():
                self._io_errors.clear()
                self._look_after_sources()
            has_failed = [not self._follow(one) for one in self._drain(wanted)]
            if any(has_failed):
                self._stop.wait(RETRY_S)

    def _follow(self, wanted: UUID | None) -> bool:
        """Look, and ask for another look when that failed; returns whether it did not."""
        try:
            self._look(wanted)
        except (InnkeeperError, SQLAlchemyError) as exc:
            log.warning("event not followed, looking again", error=str(exc))
            self._wanted.put(wanted)
            return False
        except Exception:
            log.exception("defect while following an event")
        return True

    def _look_after_sources(self) -> None:
        """A guest that QEMU holds may be one whose source is gone; the next beat asks as well."""
        if self._engine.services is None:
            return
        try:
            self._app.send_task(
                LOOK_AFTER_SOURCES,
                queue=queue_for(self._engine.services.name),
                ignore_result=True,
            )
        except UNREACHABLE as exc:
            log.warning("sources not looked after at once", error=str(exc))

    def _drain(self, first: UUID | None) -> list[UUID | None]:
        """Return everything that is to be looked at now, each once."""
        gathered: dict[UUID | None, None] = {first: None}
        while True:
            try:
                gathered[self._wanted.get_nowait()] = None
            except queue.Empty:
                return list(gathered)

    def _look(self, wanted: UUID | None) -> None:
        services = self._engine.services
        if services is None:
            return
        if wanted is None:
            sync_this_host(self._engine, self._request_verb)
            return

        def look() -> list[DomainView]:
            view = services.hypervisor.find_domain(wanted)
            return [] if view is None else [view]

        sync_host(
            self._engine.database,
            host=services.name,
            look=look,
            is_complete=False,
            request_verb=self._request_verb,
        )
