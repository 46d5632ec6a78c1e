"""What every kind of storage can do for a guest's disks."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from virt.qemu_img import ImageFormat

Preallocation = Literal["off", "metadata", "full"]
Content = Literal["none", "ext4", "vfat", "swap"]


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """A cached image that a root disk is made of; it is never written.

    Args:
        path: absolute path in the cache.
        format: as it was verified.
    """

    path: Path
    format: ImageFormat


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how far a long work is, and may stop it.

    Args:
        on_progress: told (bytes done, bytes in all).
        check: called often; may raise.
    """

    on_progress: Callable[[int, int], None] = lambda _done, _total: None
    check: Callable[[], None] = lambda: None


class Made(StrEnum):
    """How a disk came to be."""

    FOUND = "found"
    OVERLAY = "overlay"
    REFLINK = "reflink"
    COPY = "copy"
    CONVERSION = "conversion"
    EMPTY = "empty"
    FORMATTED = "formatted"


@dataclass(frozen=True, kw_only=True)
class DiskSource:
    """What stands in a domain's XML for a disk.

    Args:
        type: libvirt's kind of source: ``file``; a later back end adds ``block`` or ``network``.
        source: what it names: a path.
        format: of what is there; libvirt never guesses it.
        backing: the cached image below it; None for none.
    """

    type: Literal["file"]
    source: str
    format: ImageFormat
    backing: BaseImage | None


class DiskBackend(Protocol):
    """The disks of one guest in one kind of storage; a disk is named by its file.

    Every ``create`` is idempotent and safe to be killed anywhere: a half-made disk bears another
    name and is replaced, a whole one of the same size (and base) is kept, anything else in its
    place is refused. The caller sees to it that nobody else works for the same guest.

    How others fit: a back end for LVM is bound to a volume group and names its volumes
    ``GUEST_FILE``; it makes ``GUEST_FILE.new``, fills it by ``virt.storage.cloning`` and renames it
    (``lvrename`` is atomic); it describes ``block`` sources and refuses ``metadata``. One for RBD
    is bound to a pool, clones a protected snapshot of the base, imported once per digest, under a
    temporary name and renames the clone; it describes ``network`` sources. Neither needs a step,
    a row or a domain to know more than ``DiskSource`` tells.
    """

    def create_root(
        self,
        file: str,
        *,
        base: BaseImage,
        size_bytes: int,
        preallocation: Preallocation = "off",
        watch: Watch = ...,
    ) -> Made:
        """Make a disk that shows an image's bytes and is ``size_bytes`` large.

        Raises:
            HypervisorError: something else is there already, or a tool failed.
            HostUnsuitable: the storage is full.
        """
        ...

    def create_empty(
        self,
        file: str,
        *,
        size_bytes: int,
        content: Content = "none",
        label: str | None = None,
        preallocation: Preallocation = "off",
        watch: Watch = ...,
    ) -> Made:
        """Make a disk without a base, formatted when asked for.

        Raises:
            HypervisorError: something else is there already, or a tool failed.
            HostUnsuitable: the storage is full.
        """
        ...

    def get_size_bytes(self, file: str) -> int:
        """Return the size that the guest sees.

        Raises:
            FileNotFoundError: there is no such disk.
        """
        ...

    def resize(self, file: str, size_bytes: int) -> None:
        """Make a disk larger that no guest uses; one that is large enough is left alone.

        Raises:
            FileNotFoundError: there is no such disk.
            HypervisorError: a tool failed.
        """
        ...

    def remove(self, file: str) -> bool:
        """Remove a disk and half-made ones of its name; return whether there was one."""
        ...

    def describe(self, file: str, base: BaseImage | None) -> DiskSource:
        """Return what stands in the domain's XML; pure."""
        ...
