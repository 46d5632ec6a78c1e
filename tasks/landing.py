"""The directory that a guest's disks land in: made by this operation alone, or not touched.

It is made under the operation's own name, its inode is written into the ledger, and only then does
it get the guest's name. So whoever comes later, this attempt's successor or the undo, can tell it
from a directory that somebody else has put there.
"""

from pathlib import Path

from innkeeper.errors import PrecheckFailed
from tasks.context import StepContext
from tasks.instance_files import ensure_instance_dir_removed
from tasks.migration_storage import refuse_files


def claim_landing(context: StepContext) -> Path:
    """Make the guest's directory on its destination, or go on with the one made before.

    Raises:
        PrecheckFailed: there is one that this operation has not made; it is kept.
    """
    directory, own = context.pool.instance_dir(context.instance.id), _own(context)
    if not directory.exists():
        context.intend(directory=str(directory))
        own.mkdir(mode=0o755, parents=True, exist_ok=True)
        context.intend(inode=own.stat().st_ino)
        own.rename(directory)
        return directory
    if is_landing(context):
        return directory
    told = refuse_files(context.host.name, context.pool.name)
    raise PrecheckFailed(
        f"Instance {context.instance.name} cannot move to {context.host.name}: {told['message']}",
        {"failures": [told], "hint": told["hint"]},
    )


def is_landing(context: StepContext) -> bool:
    """True when the ledger says that the directory in the guest's place is this operation's."""
    directory = context.pool.instance_dir(context.instance.id)
    inode = context.step.undo.get("inode")
    return inode is not None and find_inode(directory) == inode


def ensure_landing_removed(context: StepContext) -> None:
    """Remove what `claim_landing` has made; anything else in its place is kept."""
    own = _own(context)
    if own.is_dir():
        own.rmdir()
    if is_landing(context):
        ensure_instance_dir_removed(context.pool, context.instance.id)


def find_inode(directory: Path) -> int | None:
    """Find the number of a directory within its file system; None when it is none."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return None
    return found.st_ino if directory.is_dir() and not directory.is_symlink() else None


def _own(context: StepContext) -> Path:
    # Beside the guests' directories: those may be a file system of their own.
    directory = context.pool.instance_dir(context.instance.id)
    return directory.with_name(f".innkeeper-landing-{context.operation.id}")
