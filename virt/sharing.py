"""Whether two hosts see one directory: a random file, written here and read there.

A path that exists on both, or the same file-system type, proves nothing.
"""

import os
from pathlib import Path
from uuid import UUID


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
