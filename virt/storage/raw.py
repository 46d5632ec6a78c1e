"""Disks as raw files: the root disk a copy of the image, which may share its blocks with it."""

import os
from dataclasses import dataclass
from pathlib import Path

from innkeeper.errors import HypervisorError
from virt.image_convert import convert
from virt.storage.backend import BaseImage, Content, DiskSource, Made, Preallocation, Watch
from virt.storage.cloning import claim_blocks, clone_file
from virt.storage.formatting import format_file
from virt.storage.publishing import publish, remove_half_made, sync_file


@dataclass(frozen=True)
class RawBackend:
    """See DiskBackend. A raw file has no tables of its own: ``metadata`` is the same as ``off``.

    Args:
        directory: the guest's own.
    """

    directory: Path

    def create_root(
        self,
        file: str,
        *,
        base: BaseImage,
        size_bytes: int,
        preallocation: Preallocation = "off",
        watch: Watch = Watch(),  # noqa: B008 (frozen)
    ) -> Made:
        """Make a copy of the image; with ``full`` it shares no block with it."""
        path = self._path(file)
        if path.exists():
            return self._require_same(path, size_bytes)
        try:
            with publish(path) as own:
                made = _copy(base, own, size_bytes, preallocation, watch)
                self._complete(own, size_bytes, preallocation, watch)
        except FileExistsError:
            return self._require_same(path, size_bytes)
        return made

    def create_empty(
        self,
        file: str,
        *,
        size_bytes: int,
        content: Content = "none",
        label: str | None = None,
        preallocation: Preallocation = "off",
        watch: Watch = Watch(),  # noqa: B008 (frozen)
    ) -> Made:
        """Make a file of zeroes, or one with a file system or swap space."""
        path = self._path(file)
        if path.exists():
            return self._require_same(path, size_bytes)
        watch.check()
        try:
            with publish(path) as own:
                own.touch(exist_ok=False)
                os.truncate(own, size_bytes)
                format_file(own, content, label)
                self._complete(own, size_bytes, preallocation, watch)
        except FileExistsError:
            return self._require_same(path, size_bytes)
        return Made.EMPTY if content == "none" else Made.FORMATTED

    def get_size_bytes(self, file: str) -> int:
        """Return the size that the guest sees."""
        return self._path(file).stat().st_size

    def resize(self, file: str, size_bytes: int) -> None:
        """Make a disk larger that no guest uses; its bytes are never looked at."""
        path = self._path(file)
        if self.get_size_bytes(file) < size_bytes:
            os.truncate(path, size_bytes)
            sync_file(path)

    def remove(self, file: str) -> bool:
        """Remove a disk."""
        path = self._path(file)
        remove_half_made(path)
        is_there = path.exists()
        path.unlink(missing_ok=True)
        return is_there

    def describe(self, file: str, base: BaseImage | None) -> DiskSource:
        """Return what stands in the domain's XML; nothing is below a raw file."""
        del base
        return DiskSource(type="file", source=str(self._path(file)), format="raw", backing=None)

    def _path(self, file: str) -> Path:
        return self.directory / file

    def _complete(
        self, own: Path, size_bytes: int, preallocation: Preallocation, watch: Watch
    ) -> None:
        if own.stat().st_size < size_bytes:
            os.truncate(own, size_bytes)
        if preallocation == "full":
            claim_blocks(own, size_bytes, watch)

    def _require_same(self, path: Path, size_bytes: int) -> Made:
        # Its bytes cannot tell whose it is: only its name and its size can.
        found_bytes = path.stat().st_size
        if found_bytes != size_bytes:
            raise HypervisorError(
                f"{path} is there already with {found_bytes} bytes; wanted were {size_bytes}.",
                {"path": str(path), "hint": "Find out whose file it is before removing it."},
            )
        remove_half_made(path)
        return Made.FOUND


def _copy(
    base: BaseImage, own: Path, size_bytes: int, preallocation: Preallocation, watch: Watch
) -> Made:
    if base.format == "raw":
        return clone_file(base.path, own, may_share=preallocation != "full", watch=watch)
    convert(
        base.path,
        base.format,
        own,
        "raw",
        max_bytes=size_bytes,
        mode=0o600,
        on_progress=lambda done: watch.on_progress(int(done * size_bytes), size_bytes),
        check=watch.check,
    )
    return Made.CONVERSION
