"""Bringing a lab up and down from outside it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from lab import description as descriptions
from lab import progress, protocol
from lab.errors import LabError
from lab.guest import images as guest_images
from lab.layout import MAX_HOSTS, REPOSITORY, Layout
from workers.secret_keys import add_key

_GRACEFUL_DOWN_S = 45.0
_UPLINK_VANISHES_S = 30.0


def up(
    layout: Layout,
    *,
    hosts: int,
    workers: bool,
    flower: bool,
    gluster: bool = False,
    owner_pid: int | None,
    env: Mapping[str, str],
    show: Callable[[str], None],
) -> subprocess.Popen[bytes]:
    """Start a lab's supervisor and wait until the lab is ready.

    Args:
        layout: where.
        hosts: how many hosts.
        workers: run Innkeeper's own processes.
        flower: run Flower.
        gluster: mount a GlusterFS volume on every host, as the pool ``gluster``.
        owner_pid: the lab ends when this process does; None lets it run until `down`.
        env: more variables for Innkeeper's processes.
        show: is told what is being done.

    Returns:
        The process whose end is the lab's end.

    Raises:
        LabError: it could not come up; nothing is left behind but its files.
    """
    if not 1 <= hosts <= MAX_HOSTS:
        raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
    if os.geteuid() != 0:
        raise LabError("a lab needs root: it makes namespaces, mounts and network devices")
    layout.check()
    for directory in (layout.root, layout.logs, layout.shared, layout.ready):
        directory.mkdir(parents=True, exist_ok=True)
    layout.lock.touch(mode=0o600)
    # Every lab has a key of its own: none is in the checkout, and none outlives the lab's files.
    add_key(layout.secret_keys, only_if_missing=True)
    images = guest_images.ensure(show)
    read_end, write_end = os.pipe()
    outer_proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    owner_fd = None if owner_pid is None else _open_owner(owner_pid)
    passed = [fd for fd in (write_end, outer_proc_fd, owner_fd) if fd is not None]
    options = {
        "directory": str(layout.root),
        "hosts": hosts,
        "workers": workers,
        "flower": flower,
        "gluster": gluster,
        "env": dict(env),
        "images": asdict(images),
        "progress_fd": write_end,
        "outer_proc_fd": outer_proc_fd,
        "owner_fd": owner_fd,
        "owner": _named(owner_pid),
    }
    unshare = ["unshare", "--pid", "--fork", "--mount", "--propagation=slave"]
    try:
        with layout.log("supervisor").open("ab") as log:
            supervisor = subprocess.Popen(
                [*unshare, sys.executable, "-m", "lab.supervise", json.dumps(options)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
            )
    finally:
        for fd in passed:
            os.close(fd)
    try:
        progress.follow(read_end, show)
    except LabError as error:
        supervisor.wait(30)
        raise LabError(f"{error}\nMore in {layout.logs}") from None
    except BaseException:
        # Whoever waited is interrupted or cannot be told anything any more: no half lab stays.
        down(layout)
        raise
    return supervisor


def down(layout: Layout, *, wipe: bool = False) -> bool:
    """Take a lab down and wait until nothing of it is left.

    Args:
        layout: where.
        wipe: delete its directory too.

    Returns:
        False when no lab was running there.
    """
    crashed_before = layout.control_socket.exists()
    try:
        connection = protocol.connect(layout.control_socket)
    except protocol.NotRunningError:
        running = False
    else:
        running = True
        with connection:
            supervisor_fd = os.pidfd_open(protocol.peer_pid(connection))
        try:
            _end(layout, supervisor_fd)
        finally:
            os.close(supervisor_fd)
    if running or crashed_before:
        _await_uplink_gone(layout)
    layout.control_socket.unlink(missing_ok=True)
    if wipe and layout.lock.exists():
        shutil.rmtree(layout.root)
    return running


def _end(layout: Layout, supervisor_fd: int) -> None:
    """Ask the supervisor to stop everything; kill it when it does not answer."""
    try:
        protocol.call(layout.control_socket, "down", timeout_s=_GRACEFUL_DOWN_S)
    except LabError:
        if not _ended(supervisor_fd, 1.0):
            signal.pidfd_send_signal(supervisor_fd, signal.SIGKILL)
    # Readable only after the kernel has reaped every other process of the PID namespace.
    if not _ended(supervisor_fd, 30.0):
        raise LabError(f"the supervisor of {layout.root} does not end; see {layout.logs}")


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _open_owner(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise LabError(f"--owner-pid {pid}: there is no such process") from None


def _named(pid: int | None) -> str:
    """Return a process in words for the log, in which it is looked up when it has ended."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({command.decode(errors='replace')[:100].strip()})"


def _await_uplink_gone(layout: Layout) -> None:
    """Wait for the kernel to take the network namespaces apart, which it does in its own time."""
    lab = descriptions.load(layout.description)
    if lab is None:
        return
    uplink = Path(f"/sys/class/net/innlab{lab.subnet}")
    deadline = time.monotonic() + _UPLINK_VANISHES_S
    while uplink.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
