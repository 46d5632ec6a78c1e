"""The directories that a guest's disks land in: made by this operation alone, or not touched.

One is made under the operation's own name, its inode is written into the ledger, and only then does
it get the guest's name. So whoever comes later, this attempt's successor or the undo, can tell it
from a directory that somebody else has put there.
"""

from pathlib import Path

from innkeeper.errors import PrecheckFailed
from tasks.context import Pool, StepContext
from tasks.guest_pools import get_guest_pools
from tasks.instance_files import ensure_instance_dir_removed
from tasks.migration_storage import refuse_files


def claim_landing(context: StepContext, pool: Pool) -> Path:
    """Make the guest's directory in a pool of its destination, or go on with the one made before.

    Raises:
        PrecheckFailed: there is one that this operation has not made; it is kept.
    """
    directory, own = pool.instance_dir(context.instance.id), _own(context, pool)
    if not directory.exists():
        undo = context.step.undo
        context.intend(directories={**undo.get("directories", {}), pool.name: str(directory)})
        own.mkdir(mode=0o755, parents=True, exist_ok=True)
        context.intend(inodes={**undo.get("inodes", {}), pool.name: own.stat().st_ino})
        own.rename(directory)
        return directory
    if is_landing(context, pool):
        return directory
    told = refuse_files(context.host.name, pool.name)
    raise PrecheckFailed(
        f"Instance {context.instance.name} cannot move to {context.host.name}: {told['message']}",
        {"failures": [told], "hint": told["hint"]},
    )


def is_landing(context: StepContext, pool: Pool) -> bool:
    """True when the ledger says that the directory in the guest's place is this operation's."""
    undo = context.step.undo
    inode = undo.get("inodes", {}).get(pool.name)
    if inode is None and pool.name == context.instance.pool:
        # An earlier release wrote the one directory that a guest had.
        inode = undo.get("inode")
    return inode is not None and find_inode(pool.instance_dir(context.instance.id)) == inode


def ensure_landing_removed(context: StepContext) -> None:
    """Remove what `claim_landing` has made in any pool; anything else in its place is kept."""
    for pool in get_guest_pools(context):
        own = _own(context, pool)
        if own.is_dir():
            own.rmdir()
        if is_landing(context, pool):
            ensure_instance_dir_removed(pool, context.instance.id)


def find_inode(directory: Path) -> int | None:
    """Find the number of a directory within its file system; None when it is none."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return None
    return found.st_ino if directory.is_dir() and not directory.is_symlink() else None


def _own(context: StepContext, pool: Pool) -> Path:
    # Beside the guests' directories: those may be a file system of their own.
    directory = pool.instance_dir(context.instance.id)
    return directory.with_name(f".innkeeper-landing-{context.operation.id}")
