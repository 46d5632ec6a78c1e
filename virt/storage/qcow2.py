"""Disks as qcow2 files: the root disk an overlay on the cached image, the others by themselves."""

from dataclasses import dataclass
from pathlib import Path

from innkeeper.errors import FormatMismatch, HypervisorError, InvalidRequest
from virt.qemu_img import QemuImgInfo, qemu_img, qemu_img_info
from virt.storage.backend import BaseImage, Content, DiskSource, Made, Preallocation, Watch
from virt.storage.formatting import format_file
from virt.storage.publishing import explain_full, publish, remove_half_made

CONVERT_TIMEOUT_S = 600.0

# QEMU's own "full" writes every byte; "falloc" has the file system set the blocks aside.
_OPTIONS: dict[Preallocation, list[str]] = {
    "off": [],
    "metadata": ["-o", "preallocation=metadata"],
    "full": ["-o", "preallocation=falloc"],
}


@dataclass(frozen=True)
class Qcow2Backend:
    """See DiskBackend.

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
        """Make an overlay on the image; it cannot be preallocated.

        Raises:
            InvalidRequest: ``preallocation`` is not ``off``.
        """
        if preallocation != "off":
            raise InvalidRequest(
                f"A qcow2 root disk is an overlay and cannot have preallocation {preallocation}.",
                {"hint": "Take root_format raw, or preallocation off."},
            )
        watch.check()
        backing = ["-F", base.format, "-b", str(base.path)]
        made = self._publish(file, base, size_bytes, ["create", *backing])
        return Made.OVERLAY if made else Made.FOUND

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
        """Make a disk of its own; a formatted one is made as a raw file and converted."""
        watch.check()
        options = _OPTIONS[preallocation]
        if content == "none":
            made = self._publish(file, None, size_bytes, ["create", *options])
            return Made.EMPTY if made else Made.FOUND
        made = self._publish(file, None, size_bytes, ["convert", *options], content, label)
        return Made.FORMATTED if made else Made.FOUND

    def get_size_bytes(self, file: str) -> int:
        """Return the size that the guest sees."""
        return qemu_img_info(self._path(file), "qcow2", is_in_use=True).virtual_size_bytes

    def resize(self, file: str, size_bytes: int) -> None:
        """Make a disk larger that no guest uses."""
        path = self._path(file)
        if self.get_size_bytes(file) < size_bytes:
            argv = ["resize", "-q", "-f", "qcow2", str(path), str(size_bytes)]
            qemu_img(argv, what=f"resize {path}")

    def remove(self, file: str) -> bool:
        """Remove a disk."""
        path = self._path(file)
        remove_half_made(path)
        is_there = path.exists()
        path.unlink(missing_ok=True)
        return is_there

    def describe(self, file: str, base: BaseImage | None) -> DiskSource:
        """Return what stands in the domain's XML."""
        return DiskSource(type="file", source=str(self._path(file)), format="qcow2", backing=base)

    def _path(self, file: str) -> Path:
        return self.directory / file

    def _publish(
        self,
        file: str,
        base: BaseImage | None,
        size_bytes: int,
        argv: list[str],
        content: Content = "none",
        label: str | None = None,
    ) -> bool:
        path = self._path(file)
        if path.exists():
            _require_same(path, base, size_bytes)
            return False
        try:
            with publish(path) as own:
                verb, *options = argv
                if verb == "create":
                    full = ["create", "-q", "-f", "qcow2", *options, str(own), str(size_bytes)]
                else:
                    raw = own.with_name(f"{own.name}.raw")
                    with raw.open("xb") as target:
                        target.truncate(size_bytes)
                    format_file(raw, content, label)
                    formats = ["-f", "raw", "-O", "qcow2"]
                    full = ["convert", "-q", *formats, *options, str(raw), str(own)]
                qemu_img(full, what=f"make the disk {path}", timeout_s=CONVERT_TIMEOUT_S)
        except FileExistsError:
            _require_same(path, base, size_bytes)
            return False
        except HypervisorError as error:
            raise explain_full(error, path) from error
        return True


def _require_same(path: Path, base: BaseImage | None, size_bytes: int) -> None:
    try:
        info: QemuImgInfo = qemu_img_info(path, "qcow2", is_in_use=True)
    except FormatMismatch as error:
        raise HypervisorError(
            f"{path} is there already and is not a qcow2 file.", {"path": str(path)}
        ) from error
    found = (info.backing_path, info.backing_format, info.virtual_size_bytes, info.data_file)
    wanted = (
        None if base is None else str(base.path),
        None if base is None else base.format,
        size_bytes,
        None,
    )
    if found != wanted:
        raise HypervisorError(
            f"{path} is there already with {info.virtual_size_bytes} bytes over"
            f" {info.backing_path or 'nothing'}; wanted were {size_bytes} bytes over"
            f" {wanted[0] or 'nothing'}.",
            {"path": str(path), "hint": "Find out whose file it is before removing it."},
        )
    remove_half_made(path)
