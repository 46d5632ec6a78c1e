"""Writing an initramfs: the "newc" cpio format, reproducibly."""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One member of an archive.

    Attributes:
        content: a file's bytes, or a symbolic link's target.
    """

    mode: int
    content: bytes = b""

    @classmethod
    def directory(cls) -> Entry:
        """Return a directory."""
        return cls(stat.S_IFDIR | 0o755)

    @classmethod
    def program(cls, content: bytes) -> Entry:
        """Return a file anyone may run."""
        return cls(stat.S_IFREG | 0o755, content)

    @classmethod
    def link(cls, target: str) -> Entry:
        """Return a symbolic link."""
        return cls(stat.S_IFLNK | 0o777, target.encode())


def archive(entries: dict[str, Entry]) -> bytes:
    """Return the archive of these paths; the same entries always give the same bytes.

    Parent directories are added where they are missing.
    """
    complete = dict(entries)
    for path in entries:
        parts = path.split("/")[:-1]
        for depth in range(len(parts)):
            complete.setdefault("/".join(parts[: depth + 1]), Entry.directory())
    ordered = sorted(complete.items())  # a directory sorts before what is in it
    members = [_member(number, path, entry) for number, (path, entry) in enumerate(ordered, 1)]
    return b"".join([*members, _member(0, "TRAILER!!!", Entry(0))])


def _member(inode: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    # inode mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
    fields = [inode, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
