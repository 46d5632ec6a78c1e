"""The files of an image cache from outside: what lies there, and how one leaves or goes bad.

A file leaves in two moves: it is set aside, which is one rename and final, and discarded later,
which may take long for a large one and is made up for after a crash.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args
from uuid import uuid4

from innkeeper.errors import Busy
from virt.guest_lock import file_lock
from virt.image_facts import ImageFacts, facts_path, read_facts, write_facts
from virt.image_fetch import StoredFormat
from virt.images import ImageCache

ASIDE = ".aside"
_DAMAGED_BYTES = -1
_FILE_NAME = re.compile(rf"([0-9a-f]{{64}})\.({'|'.join(get_args(StoredFormat))})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A file of a cache.

    Args:
        path: where it lies.
        digest: the SHA-256 in its name; whether its bytes have it is for a scrub to say.
        format: as its name says.
        allocated_bytes: what it takes on the disk.
        is_condemned: whether it is known to be damaged.
    """

    path: Path
    digest: str
    format: StoredFormat
    allocated_bytes: int
    is_condemned: bool


def parse_name(name: str) -> tuple[str, StoredFormat] | None:
    """Return digest and format of an image file's name; None for anything else."""
    match = _FILE_NAME.fullmatch(name)
    return None if match is None else (match[1], cast(StoredFormat, match[2]))


def list_files(cache: ImageCache) -> list[ImageFile]:
    """Return the image files of a cache, damaged ones included."""
    files = []
    for entry in os.scandir(cache.root):
        parsed = parse_name(entry.name)
        if parsed is None or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(FileNotFoundError):
            blocks = entry.stat(follow_symlinks=False).st_blocks
            path = Path(entry.path)
            files.append(
                ImageFile(
                    path=path,
                    digest=parsed[0],
                    format=parsed[1],
                    allocated_bytes=blocks * 512,
                    is_condemned=is_condemned(path),
                )
            )
    return sorted(files, key=lambda file: file.path.name)


def digest_lock(
    cache: ImageCache,
    digest: str,
    *,
    timeout_s: float | None = 0,
    check: Callable[[], None] = lambda: None,
    is_shared: bool = False,
) -> AbstractContextManager[None]:
    """Return a context manager that keeps fetches and removals of an image out, or removals alone.

    Args:
        cache: the cache.
        digest: the image.
        timeout_s: how long to wait; None for as long as ``check`` allows.
        check: called while waiting; may raise.
        is_shared: keep out only those who remove or replace the image.

    Raises:
        Busy: another has it.
    """
    return file_lock(
        cache.root / ".locks" / digest,
        timeout_s=timeout_s,
        check=check,
        busy=lambda: Busy(f"The image {digest} is being fetched or removed.", {"sha256": digest}),
        is_shared=is_shared,
    )


def is_there(
    cache: ImageCache, path: Path, digest: str, *, check: Callable[[], None] = lambda: None
) -> bool:
    """Tell whether an image's file is there while nobody is removing it."""
    with digest_lock(cache, digest, timeout_s=None, check=check, is_shared=True):
        return path.exists()


def set_aside(cache: ImageCache, path: Path) -> None:
    """Take a file out of its cache with one rename; what has it open keeps it.

    The caller holds the digest's lock.
    """
    aside = cache.root / ASIDE
    aside.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        os.rename(path, aside / f"{path.name}.{uuid4().hex}")
    facts_path(path).unlink(missing_ok=True)


def discard_aside(cache: ImageCache) -> int:
    """Remove what was set aside, also by a process that died; return how many files."""
    discarded = 0
    for path in _list_aside(cache):
        with suppress(FileNotFoundError):
            path.unlink()
            discarded += 1
    return discarded


def condemn(path: Path) -> None:
    """Mark a file as damaged: the cache fetches it anew for the next who asks.

    It stays where it is, for guests whose disks lie on it may do well with what is left.
    """
    facts = read_facts(path) or ImageFacts(0, 0, 0)
    write_facts(path, replace(facts, size_bytes=_DAMAGED_BYTES))


def is_condemned(path: Path) -> bool:
    """Tell whether a file is marked as damaged."""
    facts = read_facts(path)
    return facts is not None and facts.size_bytes == _DAMAGED_BYTES


def _list_aside(cache: ImageCache) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from (cache.root / ASIDE).iterdir()
