"""The root disk of an instantly booted guest: an overlay over a raw image on a server."""

from pathlib import Path

from innkeeper.errors import FormatMismatch, HypervisorError
from innkeeper.remote_source import RemoteSource
from virt.identity import sync_directory
from virt.qemu_img import qemu_img, qemu_img_info
from virt.storage.publishing import publish


def create_remote_overlay(path: Path, *, source: RemoteSource, size_bytes: int) -> bool:
    """Make an empty qcow2 over a raw image on a server, unless just that is there already.

    Neither this nor a look at the file later opens the server.

    Args:
        path: absolute; its directory is made when missing.
        source: where the raw image is.
        size_bytes: the disk's size as the guest sees it.

    Returns:
        True when it was made now, False when it was there.

    Raises:
        HypervisorError: something else is at the path, or qemu-img failed.
    """
    if path.exists():
        _require_same(path, source, size_bytes)
        return False
    backing = ["-u", "-F", "raw", "-b", source.url]
    with publish(path) as own:
        qemu_img(
            ["create", "-q", "-f", "qcow2", *backing, str(own), str(size_bytes)],
            what=f"create the overlay {path}",
        )
    return True


def rebase_at_rest(path: Path, *, backing_path: Path) -> None:
    """Put a raw file of the same bytes below an overlay that nobody uses.

    Raises:
        HypervisorError: qemu-img failed.
    """
    backing = ["-F", "raw", "-b", str(backing_path)]
    qemu_img(
        ["rebase", "-q", "-u", "-f", "qcow2", *backing, str(path)], what=f"put a base below {path}"
    )
    sync_directory(path.parent)


def _require_same(path: Path, source: RemoteSource, size_bytes: int) -> None:
    try:
        info = qemu_img_info(path, "qcow2", is_in_use=True)
    except FormatMismatch as error:
        raise HypervisorError(
            f"{path} is there already and is not a qcow2 file.", {"path": str(path)}
        ) from error
    found = (info.backing_path, info.backing_format, info.virtual_size_bytes, info.data_file)
    if found != (source.url, "raw", size_bytes, None):
        raise HypervisorError(
            f"{path} is there already with {info.virtual_size_bytes} bytes over"
            f" {info.backing_path}; wanted were {size_bytes} bytes over {source.url}.",
            {"path": str(path), "hint": "Find out whose file it is before removing it."},
        )
