"""A cage for programs that read what strangers made: limits, no network, a user with no rights.

The program gets its files as open descriptors, so it needs no right on any directory; it sees
nothing of our environment, cannot gain rights, and dies with us. What this host does not grant (a
container often has neither) is left out and said once in the log.
"""

import os
import pwd
import select
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import structlog

log = structlog.get_logger(__name__)

DEFAULT_USER = "nobody"
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_OPEN_FILES = 64
_LOOK_AROUND_S = 0.2
_OUTPUT_BYTES = 1 << 20


class CageTimeout(Exception):
    """The program took longer than it may."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program in the cage may use.

    Args:
        timeout_s: time by the clock.
        cpu_s: time of the processor.
        memory_bytes: address space.
        written_bytes: length of any file it writes.
    """

    timeout_s: float
    cpu_s: int
    memory_bytes: int = 2 << 30
    written_bytes: int = _OUTPUT_BYTES


@dataclass(frozen=True)
class Caged:
    """How a program ended.

    Args:
        returncode: as subprocess tells it; negative for a signal.
        stdout: at most ``written_bytes`` of it.
        stderr: likewise.
    """

    returncode: int
    stdout: str
    stderr: str

    @property
    def was_killed(self) -> bool:
        """Whether a limit or a defect of its own ended it."""
        return self.returncode < 0 or self.returncode in (134, 137, 139)

    @property
    def last_line(self) -> str:
        """The last thing it said, for people."""
        lines = (self.stderr or self.stdout).strip().splitlines()
        return lines[-1][:500] if lines else f"it ended with {self.returncode}"


@dataclass(frozen=True)
class Cage:
    """Runs programs with as few rights as this host lets us take away.

    Args:
        user: the user they run as; None for our own.
        has_no_network: whether they get a network of their own with nothing in it.
    """

    user: str | None
    has_no_network: bool

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Sequence[int] = (),
        limits: Limits,
        look_around: Callable[[str], None] = lambda _said: None,
    ) -> Caged:
        """Run a program to its end.

        Args:
            argv: the program and its arguments; see ``name_file``.
            files: descriptors it inherits. One that the user may not read makes it run as ours.
            limits: what it may use.
            look_around: called every now and then with what it has said so far; may raise.

        Raises:
            CageTimeout: it took too long.
        """
        user = self.user
        if user is not None and not all(_may_read(user, number) for number in files):
            user = None
        with _Output() as stdout, _Output() as stderr:
            process = subprocess.Popen(
                [*self._bars(user, limits), *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout.number,
                stderr=stderr.number,
                pass_fds=files,
                env=_ENVIRONMENT,
            )
            try:
                _wait(process, limits.timeout_s, lambda: look_around(stdout.text()))
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            return Caged(process.returncode, stdout.text(), stderr.text())

    def give(self, number: int) -> None:
        """Let the programs in the cage write to an open file."""
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.fchown(number, entry.pw_uid, entry.pw_gid)

    def _bars(self, user: str | None, limits: Limits) -> list[str]:
        bars = ["unshare", "--net", "--"] if self.has_no_network else []
        bars += ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
        if user is not None:
            bars += _become(user)
        return [
            *bars,
            *("--", "prlimit", f"--as={limits.memory_bytes}", f"--cpu={limits.cpu_s}"),
            *(f"--nofile={_OPEN_FILES}", f"--fsize={limits.written_bytes}", "--core=0", "--"),
        ]


@cache
def get_cage(user: str = DEFAULT_USER) -> Cage:
    """Return the tightest cage this host allows; tried once per process.

    Args:
        user: what programs run as where we may change that; empty to keep our own.
    """
    has_no_network = _works(["unshare", "--net", "--"])
    own_user: str | None = user or None
    if user and not _may_become(user):
        own_user = None
    if not has_no_network or (user and own_user is None):
        log.warning(
            "programs that read images run with more rights than they need",
            has_no_network=has_no_network,
            user=own_user or "the worker's own",
        )
    return Cage(own_user, has_no_network)


def name_file(number: int) -> str:
    """Return the path under which a program in the cage opens a descriptor it inherited.

    No such name is an address to QEMU, as ``json:{…}`` or ``nbd:…`` would be.
    """
    return f"/proc/self/fd/{number}"


def _may_become(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return _works(["setpriv", *_become(user), "--"])


def _become(user: str) -> list[str]:
    entry = pwd.getpwnam(user)
    return [
        *(f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all"),
    ]


def _works(bars: list[str]) -> bool:
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([*bars, "true"], capture_output=True, env=_ENVIRONMENT, timeout=10)
        return done.returncode == 0
    return False


def _may_read(user: str, number: int) -> bool:
    about = os.fstat(number)
    return bool(about.st_mode & stat.S_IROTH) or about.st_uid == pwd.getpwnam(user).pw_uid


def _wait(process: "subprocess.Popen[bytes]", timeout_s: float, look: Callable[[], None]) -> None:
    end_s = time.monotonic() + timeout_s
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        while not poll.poll(_LOOK_AROUND_S * 1000):
            look()
            if time.monotonic() >= end_s:
                raise CageTimeout
    finally:
        os.close(ended)
    process.wait()


class _Output:
    """What a program says, in memory; the limit on written files bounds it, a pipe would not."""

    def __enter__(self) -> "_Output":
        self.number = os.memfd_create("output", os.MFD_CLOEXEC)
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.number)

    def text(self) -> str:
        return os.pread(self.number, _OUTPUT_BYTES, 0).decode("utf-8", "replace")
