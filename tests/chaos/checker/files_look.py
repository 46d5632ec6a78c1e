"""The files of guests, of migrations and of image caches, read from outside the hosts."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lab.handle import Lab
from lab.layout import HOST_MOUNTS, SHARED_MOUNT

PROBE_PREFIX = ".innkeeper-probe-"
LANDING_PREFIX = ".innkeeper-landing-"


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file or directory that is Innkeeper's by its place.

    Args:
        kind: ``instance``, ``console``, ``probe``, ``partial``, ``guest_lock`` or ``image_lock``;
            locks are listed only while they are held.
        host: None in the shared pool.
        pool: ``local`` or ``shared``.
        path: as a host sees it.
        owner: the id in its name: a guest's, or an operation's for a probe.
        changed_at_s: Unix time of its last change.
    """

    kind: str
    host: str | None
    pool: str
    path: str
    owner: UUID | None
    changed_at_s: float

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.path} on {self.host or 'all hosts'}"


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory of the lab and where hosts see it."""

    root: Path
    seen_as: str
    host: str | None
    pool: str

    def file(self, kind: str, path: Path, owner: str = "") -> SeenFile:
        return SeenFile(
            kind,
            self.host,
            self.pool,
            f"{self.seen_as}/{path.relative_to(self.root)}",
            find_id(owner),
            path.stat().st_mtime,
        )


def list_files(lab: Lab) -> Iterator[SeenFile]:
    """Yield all files of all pools, and the consoles and held locks of all hosts."""
    yield from _list_pool(_Place(lab.layout.shared, SHARED_MOUNT, None, "shared"))
    for host in lab.hosts:
        base = lab.layout.host(host)
        state = _Place(base / "innkeeper", HOST_MOUNTS["innkeeper"], host, "local")
        yield from _list_pool(state)
        for path in _children(state.root / "consoles"):
            with suppress(FileNotFoundError):
                yield state.file("console", path, path.name.split(".")[0])
        run = _Place(base / "run", HOST_MOUNTS["run"], host, "local")
        yield from _list_held(run, "guest_lock", run.root / "innkeeper" / "locks")


def _list_pool(place: _Place) -> Iterator[SeenFile]:
    for directory in _children(place.root / "instances"):
        if directory.name.startswith(LANDING_PREFIX):
            with suppress(FileNotFoundError):
                yield place.file("probe", directory, directory.name.removeprefix(LANDING_PREFIX))
            continue
        for path in [directory, *(directory.rglob("*") if directory.is_dir() else ())]:
            with suppress(FileNotFoundError):
                yield place.file("instance", path, directory.name)
    for path in _children(place.root):
        if path.name.startswith(PROBE_PREFIX):
            owner = path.name.removeprefix(PROBE_PREFIX).removesuffix(".answer")
            with suppress(FileNotFoundError):
                yield place.file("probe", path, owner)
    for path in _children(place.root / "images" / ".partial"):
        with suppress(FileNotFoundError):
            yield place.file("partial", path)
    yield from _list_held(place, "image_lock", place.root / "images" / ".locks")


def _list_held(place: _Place, kind: str, directory: Path) -> Iterator[SeenFile]:
    for path in _children(directory):
        with suppress(FileNotFoundError):
            if _is_held(path):
                yield place.file(kind, path, path.stem)


def _is_held(path: Path) -> bool:
    """Try for an instant to share the lock; whoever wants it meanwhile tries again anyway."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def find_id(text: str) -> UUID | None:
    """Return the id that a text is; None when it is not one."""
    try:
        return UUID(text)
    except ValueError:
        return None
