"""Connections to one libvirtd: the event loop under them, their opening, loss and bounded calls.

Rules this file keeps (each was paid for elsewhere):

* the event loop exists before the first connection, or keepalive and events do nothing;
* nothing here survives ``fork``: a connection used in a child breaks the parent's as well;
* callbacks run in the event loop's thread, so they only put things into queues;
* one call at a time on a connection (virt.lane says why);
* a lost connection is replaced as a whole, and a late message about the old one is recognised by
  its generation.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import libvirt
import structlog

from innkeeper.errors import HypervisorUnavailable, InternalError
from virt.errors import Fault, Meaning, classify, not_connected, translate
from virt.watchdog import watchdog

log = structlog.get_logger(__name__)

T = TypeVar("T")

CALL_LIMIT_S = 60.0
OPEN_LIMIT_S = 15.0
CLOSE_LIMIT_S = 3.0

_CLOSE_REASONS = ("error", "the server closed it", "keepalive got no answer", "closed by us")

_loop_lock = threading.Lock()
_loop_pid: int | None = None
_open_lock = threading.Lock()
_leaked: list[Any] = []


def ensure_event_loop() -> None:
    """Start libvirt's event loop in this process, once.

    Raises:
        InternalError: the process was forked from one that had the loop already.
    """
    global _loop_pid
    with _loop_lock:
        if _loop_pid == os.getpid():
            return
        if _loop_pid is not None:
            raise InternalError("Libvirt's event loop does not survive fork; use a thread pool.")
        # Before any other call, or libvirt prints every error to stderr.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        _loop_pid = os.getpid()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()


def _run_event_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop stumbled")


def fault_of(error: "libvirt.libvirtError") -> Fault:
    """Return the numbers and the text of a libvirtError; call it in the thread that raised."""
    return Fault(
        code=error.get_error_code() or 0,
        domain=error.get_error_domain() or 0,
        text=str(error.get_error_message() or error)[:2000],
        errno=error.get_int1() or 0,
    )


@dataclass(eq=False)
class Connection:
    """One open virConnect with its socket, used by one thread at a time.

    Args:
        handle: libvirt's connection object.
        host: the host's name, for messages.
        socket_inode: identity of its socket in /proc/self/fd; None when it was not found.
        on_fault: told once when a call shows that the connection is dead.
    """

    handle: Any
    host: str
    socket_inode: str | None
    on_fault: Callable[[str], None] = lambda _reason: None
    _in_use: threading.Lock = field(init=False, default_factory=threading.Lock)
    _is_closed: bool = field(init=False, default=False)

    def call(
        self,
        what: str,
        act: Callable[[Any], T],
        *,
        instance_id: UUID | None = None,
        limit_s: float | None = CALL_LIMIT_S,
    ) -> T:
        """Run one or a few libvirt calls.

        Args:
            what: an infinitive for messages: "start the domain".
            act: gets libvirt's connection object.
            instance_id: the guest concerned, for the error's details.
            limit_s: after this time the socket is cut, which ends the call (and the connection);
                None for calls with a bound of their own.

        Raises:
            HypervisorUnavailable: the connection broke; the call's outcome is unknown.
            InnkeeperError: what virt.errors makes of libvirt's error.
        """
        with self._in_use:
            return self._call(what, act, instance_id, limit_s)

    def _call(
        self,
        what: str,
        act: Callable[[Any], T],
        instance_id: UUID | None,
        limit_s: float | None,
    ) -> T:
        try:
            if self._is_closed:
                raise not_connected(self.host, what)
            if limit_s is None:
                return act(self.handle)
            with watchdog.limit(limit_s, what, self.cut):
                return act(self.handle)
        except libvirt.libvirtError as error:
            fault = fault_of(error)
            if classify(fault) is Meaning.LOST and not self._is_alive():
                self.on_fault(fault.text)
            raise translate(fault, what=what, host=self.host, instance_id=instance_id) from error

    def cut(self) -> None:
        """Shut the socket down: whoever is inside a call returns at once with an error."""
        for number, inode in _sockets().items():
            if inode == self.socket_inode and _is_libvirts(number):
                _shut_down(number)

    def close(self) -> None:
        """Close the connection, best effort and bounded; calls on it are refused afterwards."""
        self._is_closed = True
        # A call under way ends soon when the socket was cut.
        if not self._in_use.acquire(timeout=CLOSE_LIMIT_S):
            # Freed under a call it would crash the process; a leak is the lesser evil.
            _leaked.append(self.handle)
            return
        try:
            with watchdog.limit(CLOSE_LIMIT_S, "close the connection", self.cut):
                # The callback would keep the connection alive.
                with suppress(libvirt.libvirtError):
                    self.handle.unregisterCloseCallback()
                with suppress(libvirt.libvirtError):
                    self.handle.close()
        finally:
            self._in_use.release()

    def _is_alive(self) -> bool:
        try:
            return bool(self.handle.isAlive())
        except libvirt.libvirtError:
            return False


def open_connection(
    uri: str,
    *,
    host: str,
    keepalive_interval_s: int,
    keepalive_count: int,
    on_fault: Callable[[str], None] | None = None,
    on_closed: Callable[[str], None] | None = None,
    limit_s: float = OPEN_LIMIT_S,
) -> Connection:
    """Open one connection.

    Args:
        uri: libvirt's, e.g. ``qemu:///system``.
        host: the host's name, for messages.
        keepalive_interval_s: seconds between probes; dead after interval × (count + 1).
        keepalive_count: probes that may stay unanswered.
        on_fault: told when a call meets a dead connection.
        on_closed: told by the event loop when the connection breaks; must not block.
        limit_s: seconds for all of it.

    Raises:
        HypervisorUnavailable: there is no libvirtd, or it does not answer.
    """
    ensure_event_loop()
    # Keepalive does not protect open(), and its socket is only known by what is new: hence the
    # lock (one open at a time) and the comparison of sockets before and after.
    with _open_lock:
        before = set(_sockets().values())

        def cut_new() -> None:
            for number, inode in _sockets().items():
                if inode not in before and _is_libvirts(number):
                    _shut_down(number)

        try:
            with watchdog.limit(limit_s, "open", cut_new):
                handle = libvirt.open(uri)
                if handle.setKeepAlive(keepalive_interval_s, keepalive_count) != 0:
                    log.warning("libvirtd does not do keepalive", host=host)
                if on_closed is not None:
                    # A call to libvirtd like the others: it may have died since it took us in.
                    handle.registerCloseCallback(_on_close, on_closed)
        except libvirt.libvirtError as error:
            fault = fault_of(error)
            raise HypervisorUnavailable(
                f"Libvirt on {host} cannot be reached: {fault.text}",
                {
                    "host": host,
                    "libvirt_code": fault.code,
                    "libvirt_domain": fault.domain,
                    "meaning": Meaning.LOST.value,
                    "effect": "not_started",
                },
            ) from error
        new = {
            inode
            for number, inode in _sockets().items()
            if inode not in before and _is_libvirts(number)
        }
    if len(new) != 1:
        # Calls on it are then bounded by keepalive alone.
        log.warning("the connection's socket was not found", host=host, candidates=len(new))
    return Connection(
        handle,
        host,
        new.pop() if len(new) == 1 else None,
        on_fault or (lambda _reason: None),
    )


def _on_close(_handle: Any, reason: int, on_closed: Callable[[str], None]) -> None:
    on_closed(_CLOSE_REASONS[reason] if 0 <= reason < len(_CLOSE_REASONS) else str(reason))


def _sockets() -> dict[int, str]:
    """Return file descriptor → inode name of this process's sockets."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found[int(name)] = target
    return found


def _is_libvirts(number: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(number)) as probe:
            if probe.type != socket.SOCK_STREAM:
                return False
            peer = probe.getpeername()
    except OSError:
        return False
    if isinstance(peer, tuple):
        return int(peer[1]) in (16509, 16514)
    return "libvirt" in os.fsdecode(peer)


def _shut_down(number: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as victim:
        victim.shutdown(socket.SHUT_RDWR)
