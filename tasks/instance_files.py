"""The directory of a guest's own files in a pool: its making is recorded, its removal is narrow."""

import shutil
from pathlib import Path
from uuid import UUID

import structlog

from tasks.context import Pool

log = structlog.get_logger(__name__)


def ensure_instance_dir_removed(pool: Pool, instance_id: UUID) -> bool:
    """Remove a guest's directory with all that is in it.

    Args:
        pool: the pool that holds it.
        instance_id: the guest; the directory's name is built from it, never taken from elsewhere.

    Returns:
        Whether there was one. A symbolic link in its place is left alone and reported.
    """
    directory = pool.instance_dir(instance_id)
    if directory.is_symlink() or directory.parent != pool.path / "instances":
        log.error("not a guest's directory, left alone", path=str(directory))
        return False
    if not directory.exists():
        return False
    shutil.rmtree(directory)
    return True


def is_recorded(pool: Pool, instance_id: UUID, recorded: str | Path | None) -> bool:
    """True when the ledger says that this very directory was made by the operation."""
    return recorded is not None and Path(recorded) == pool.instance_dir(instance_id)
