"""The connections of one host as one thing: opened together, lost together, replaced together.

Each kind of call has connections of its own, so that one kind never waits for another:

    events   callbacks and keepalive; makes no calls, so nothing can delay an event
    control  quick calls: states, XML, job figures, abort, pause and resume
    work     calls that last: define, start, destroy
    agent    calls whose answer depends on what runs in a guest, who may let us wait
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from innkeeper.errors import InnkeeperError
from virt import events
from virt.connection import Connection, ensure_event_loop, open_connection
from virt.errors import not_connected
from virt.lane import Lane
from virt.watch import EventHub

log = structlog.get_logger(__name__)

# Together below libvirtd's 20 worker threads by default, so that others are served as well.
CONTROL_CALLS = 4
WORK_CALLS = 4
AGENT_CALLS = 3

RECONNECT_S = 0.2
RECONNECT_MAX_S = 2.0
CLOSE_JOIN_S = 5.0
LAST_CALLS_LIMIT_S = 1.0


@dataclass(frozen=True, eq=False)
class _Live:
    generation: int
    events: Connection
    control: Lane
    work: Lane
    agent: Lane
    callbacks: tuple[int, ...]

    def cut(self) -> None:
        for part in (self.events, self.control, self.work, self.agent):
            part.cut()

    def close(self) -> None:
        for part in (self.events, self.control, self.work, self.agent):
            part.close()


class Session:
    """Keeps one host's connections up.

    Args:
        uri: libvirt's.
        name: the host's name.
        hub: gets the host's events.
        keepalive_interval_s: seconds between probes; dead after interval × (count + 1).
        keepalive_count: probes that may stay unanswered.
        on_connected: called in the session's thread after the callbacks are registered, so that a
            snapshot taken in it misses nothing.
        on_lost: called in the session's thread with the reason, once per lost connection.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        hub: EventHub,
        keepalive_interval_s: int,
        keepalive_count: int,
        on_connected: Callable[[], None] | None,
        on_lost: Callable[[str], None] | None,
    ) -> None:
        self.uri = uri
        self.name = name
        self._hub = hub
        self._keepalive = (keepalive_interval_s, keepalive_count)
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._live: _Live | None = None
        self._generation = 0
        self._faults: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._is_up = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start connecting in the background; returns at once.

        Raises:
            InternalError: the process was forked from one that had libvirt's event loop.
        """
        ensure_event_loop()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"libvirt-{self.name}", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Close everything, bounded in time."""
        self._closing.set()
        self._faults.put((0, "closed by us"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_JOIN_S)

    @property
    def is_connected(self) -> bool:
        """True while all connections are open."""
        return self._live is not None

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` seconds for all connections; return whether they are open."""
        return self._is_up.wait(timeout_s)

    @property
    def generation(self) -> int:
        """Number of the current set of connections; grows with each reconnect."""
        return self._generation

    def control(self, what: str) -> Lane:
        """Return the connections for quick calls.

        Raises:
            HypervisorUnavailable: there are none now.
        """
        return self._need(what).control

    def work(self, what: str) -> Lane:
        """Return the connections for calls that last.

        Raises:
            HypervisorUnavailable: there are none now.
        """
        return self._need(what).work

    def agent(self, what: str) -> Lane:
        """Return the connections for calls that a guest answers.

        Raises:
            HypervisorUnavailable: there are none now.
        """
        return self._need(what).agent

    def open_own(self, on_fault: Callable[[str], None] | None = None) -> Connection:
        """Return a new connection for a caller with one long call, who must close it.

        Raises:
            HypervisorUnavailable: libvirtd does not answer.
        """
        return self._open(on_fault or (lambda _reason: None))

    def _need(self, what: str) -> _Live:
        live = self._live
        if live is None:
            raise not_connected(self.name, what)
        return live

    def _run(self) -> None:
        pause_s = RECONNECT_S
        while not self._closing.is_set():
            try:
                live = self._connect()
            except Exception as error:
                # Whatever it was: a thread that ends here would leave the host without libvirt
                # until its worker is restarted.
                if not isinstance(error, InnkeeperError):
                    log.exception("connecting to libvirt failed", host=self.name)
                elif pause_s == RECONNECT_S:
                    log.warning("libvirt is out of reach", host=self.name, error=error.message)
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_MAX_S)
                continue
            pause_s = RECONNECT_S
            reason = self._serve(live)
            # Before the rest, which takes a moment: whoever waits must wait for the next ones.
            self._is_up.clear()
            self._live = None
            self._discard(live, is_broken=not self._closing.is_set())
            if not self._closing.is_set():
                log.warning("connection to libvirt lost", host=self.name, reason=reason)
                self._tell(self._on_lost, reason)

    def _serve(self, live: _Live) -> str:
        self._live = live
        self._is_up.set()
        log.info("connected to libvirt", host=self.name, generation=live.generation)
        self._tell(self._on_connected)
        # Only now: a watcher that looks again must be able to.
        self._hub.publish(events.restored_event())
        while True:
            generation, reason = self._faults.get()
            if generation == live.generation or self._closing.is_set():
                return reason

    def _connect(self) -> _Live:
        self._generation += 1
        number = self._generation

        def faulty(reason: str) -> None:
            self._faults.put((number, reason))

        opened: list[Connection] = []
        try:
            for _ in range(1 + CONTROL_CALLS + WORK_CALLS + AGENT_CALLS):
                opened.append(self._open(faulty, faulty))
            rest = iter(opened)
            first = next(rest)
            control = Lane([next(rest) for _ in range(CONTROL_CALLS)])
            work = Lane([next(rest) for _ in range(WORK_CALLS)])
            agent = Lane([next(rest) for _ in range(AGENT_CALLS)])
            callbacks = first.call("listen to events", self._listen)
        except BaseException:
            for connection in opened:
                connection.cut()
                connection.close()
            raise
        return _Live(number, first, control, work, agent, callbacks)

    def _open(
        self, on_fault: Callable[[str], None], on_closed: Callable[[str], None] | None = None
    ) -> Connection:
        interval_s, count = self._keepalive
        return open_connection(
            self.uri,
            host=self.name,
            keepalive_interval_s=interval_s,
            keepalive_count=count,
            on_fault=on_fault,
            on_closed=on_closed,
        )

    def _listen(self, conn: Any) -> tuple[int, ...]:
        register = conn.domainEventRegisterAny
        return (
            register(None, events.EVENT_LIFECYCLE, self._lifecycle, None),
            register(None, events.EVENT_REBOOT, self._reboot, None),
            register(None, events.EVENT_BLOCK_JOB, self._block_job, None),
            register(None, events.EVENT_AGENT_LIFECYCLE, self._agent, None),
            register(None, events.EVENT_MIGRATION_ITERATION, self._iteration, None),
            register(None, events.EVENT_JOB_COMPLETED, self._job, None),
        )

    # Called in the event loop's thread: UUID and name are local to the handle, nothing blocks.

    def _lifecycle(self, _conn: Any, domain: Any, code: int, detail: int, _opaque: Any) -> None:
        event = events.lifecycle_event(_id(domain), code, detail, name=domain.name())
        if event is not None:
            self._hub.publish(event)

    def _reboot(self, _conn: Any, domain: Any, _opaque: Any) -> None:
        self._hub.publish(events.reboot_event(_id(domain), name=domain.name()))

    def _block_job(
        self, _conn: Any, domain: Any, target: str, kind: int, status: int, _opaque: Any
    ) -> None:
        event = events.block_job_event(_id(domain), target, kind, status, name=domain.name())
        self._hub.publish(event)

    def _agent(self, _conn: Any, domain: Any, state: int, reason: int, _opaque: Any) -> None:
        self._hub.publish(events.agent_event(_id(domain), state, reason, name=domain.name()))

    def _iteration(self, _conn: Any, domain: Any, iteration: int, _opaque: Any) -> None:
        self._hub.publish(events.iteration_event(_id(domain), iteration, name=domain.name()))

    def _job(self, _conn: Any, domain: Any, params: dict[str, Any], _opaque: Any) -> None:
        self._hub.publish(events.job_event(_id(domain), params, name=domain.name()))

    def _discard(self, live: _Live, *, is_broken: bool) -> None:
        # Closing politely would wait for a daemon that no longer answers.
        if is_broken:
            live.cut()
        for number in live.callbacks:
            # Each on its own: one that stays registered keeps the whole connection alive.
            try:
                live.events.call(
                    "stop listening", partial(_deregister, number), limit_s=LAST_CALLS_LIMIT_S
                )
            except InnkeeperError:
                live.cut()
        live.close()

    def _tell(self, listener: Callable[..., None] | None, *args: str) -> None:
        if listener is None:
            return
        try:
            listener(*args)
        except Exception:
            log.exception("a listener to the connection failed", host=self.name)


def _deregister(number: int, conn: Any) -> None:
    conn.domainEventDeregisterAny(number)


def _id(domain: Any) -> UUID:
    return UUID(bytes=domain.UUID())
