"""Whether two hosts see one directory: a random file, written here and read there.

A path that exists on both, or the same file-system type, proves nothing.
"""

import os
from pathlib import Path
from uuid import UUID, uuid4

_POOL_ID = ".innkeeper-pool-id"


def write_probe(directory: Path, token: UUID) -> None:
    """Write the probe file of a token; writing it again is fine.

    Raises:
        OSError: the directory cannot be written.
    """
    path = _probe(directory, token)
    with path.open("w", encoding="ascii") as file:
        file.write(str(token))
        file.flush()
        os.fsync(file.fileno())


def read_probe(directory: Path, token: UUID) -> bool:
    """Return whether the directory, seen from here, holds the token's probe file."""
    try:
        # A network file system may serve an old listing; opening by name asks the server.
        return _probe(directory, token).read_text(encoding="ascii") == str(token)
    except (OSError, UnicodeDecodeError):
        return False


def remove_probe(directory: Path, token: UUID) -> None:
    """Remove the probe file; none is fine."""
    _probe(directory, token).unlink(missing_ok=True)


def _probe(directory: Path, token: UUID) -> Path:
    return directory / f".innkeeper-probe-{token}"


def ensure_pool_id(directory: Path) -> str:
    """Return the id that stands in a pool's directory, the same for every host that sees it.

    A host that is dead cannot be asked whether another one sees its files; what it has read here
    before can be compared.

    Raises:
        OSError: the directory cannot be read or written.
    """
    known = find_pool_id(directory)
    if known is not None:
        return known
    fresh = uuid4()
    draft = directory / f"{_POOL_ID}-{fresh}"
    draft.write_text(str(fresh), encoding="ascii")
    try:
        # Of two hosts that come at the same moment the first one's stays.
        os.link(draft, directory / _POOL_ID)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return (directory / _POOL_ID).read_text(encoding="ascii")


def find_pool_id(directory: Path) -> str | None:
    """Return the id of a pool's directory; None when nobody has given it one."""
    try:
        return str(UUID((directory / _POOL_ID).read_text(encoding="ascii")))
    except (OSError, ValueError):
        return None
