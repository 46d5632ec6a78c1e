"""A guest's own directory in a pool: its making is recorded, its removal is narrow."""

import shutil
from collections.abc import Iterable, Mapping
from typing import Any
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


def list_recorded(pools: Iterable[Pool], instance_id: UUID, undo: Mapping[str, Any]) -> list[Pool]:
    """Return the pools in which the ledger says that the operation made the guest's directory.

    Args:
        pools: those that the guest may be in.
        instance_id: the guest.
        undo: what the step has written of its intents.
    """
    # An earlier release wrote the one directory that a guest had.
    recorded = {*undo.get("directories", ()), undo.get("directory")}
    return [pool for pool in pools if str(pool.instance_dir(instance_id)) in recorded]
