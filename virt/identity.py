"""Who a host is: a UUID in a file of the host's own, made once.

A worker whose file and database row disagree must not start: its name was given to another machine,
or its disk was copied.
"""

import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from innkeeper.errors import HypervisorError

FILE_NAME = "host-id"


def find_host_id(path: Path) -> UUID | None:
    """Return the identity in a file; None when there is no file.

    Raises:
        HypervisorError: the file holds something else.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    try:
        return UUID(text)
    except ValueError as error:
        raise HypervisorError(
            f"The host's identity file {path} does not hold a UUID.",
            {"hint": "Restore the file, or remove it to make this a new host."},
        ) from error


def get_or_create(path: Path) -> UUID:
    """Return the identity in a file, making file and directories when there is none.

    Two processes that make it at once agree on the one that was first.

    Args:
        path: the file, usually ``<state_dir>/host-id``.

    Raises:
        HypervisorError: the file holds something else.
        OSError: it can be neither read nor made.
    """
    known = find_host_id(path)
    if known is not None:
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{uuid4()}")
    try:
        with own.open("x", encoding="ascii") as file:
            file.write(f"{uuid4()}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link refuses to replace, a rename would not.
        with suppress(FileExistsError):
            os.link(own, path)
        sync_directory(path.parent)
    finally:
        own.unlink(missing_ok=True)
    made = find_host_id(path)
    assert made is not None
    return made


def sync_directory(directory: Path) -> None:
    """Make new and renamed entries of a directory survive a power cut."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
