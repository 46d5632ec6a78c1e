"""Whether two hosts see one directory: a file written on each of them and read on the other.

A path that exists on both, or the same file-system type, proves nothing. The destination writes the
probe and holds a lock on it; the source, when it reads the probe, writes an answer beside it.
"""

import os
from pathlib import Path
from uuid import UUID, uuid4

from virt.file_locks import LockHolder, is_locked_elsewhere

_POOL_ID = ".innkeeper-pool-id"
_LOCKS = LockHolder()


def write_probe(directory: Path, token: UUID) -> None:
    """Write the probe file of a token; writing it again is fine.

    Raises:
        OSError: the directory cannot be written.
    """
    _write(_probe(directory, token), str(token))


def read_probe(directory: Path, token: UUID) -> bool:
    """Return whether the directory, seen from here, holds the token's probe file."""
    return _read(_probe(directory, token)) == str(token)


def lock_probe(directory: Path, token: UUID) -> bool:
    """Hold a lock on the probe file until it is removed or this process ends.

    Returns:
        Whether the file system took it.
    """
    try:
        return _LOCKS.hold(_probe(directory, token))
    except OSError:
        return False


def is_probe_locked(directory: Path, token: UUID) -> bool:
    """Return whether the other host's lock on the probe file is seen from here."""
    return is_locked_elsewhere(_probe(directory, token))


def write_answer(directory: Path, token: UUID) -> None:
    """Write the answer to a probe; writing it again is fine.

    Raises:
        OSError: the directory cannot be written.
    """
    _write(_answer(directory, token), f"seen {token}")


def read_answer(directory: Path, token: UUID) -> bool:
    """Return whether the directory, seen from here, holds the answer to the token's probe."""
    return _read(_answer(directory, token)) == f"seen {token}"


def remove_answer(directory: Path, token: UUID) -> None:
    """Remove the answer; none is fine."""
    _answer(directory, token).unlink(missing_ok=True)


def remove_probe(directory: Path, token: UUID) -> None:
    """Let go of the probe file and remove it; none is fine."""
    path = _probe(directory, token)
    _LOCKS.let_go(path)
    path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> str | None:
    try:
        # A network file system may serve an old listing; opening by name asks the server.
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _probe(directory: Path, token: UUID) -> Path:
    return directory / f".innkeeper-probe-{token}"


def _answer(directory: Path, token: UUID) -> Path:
    return directory / f".innkeeper-probe-{token}.answer"


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
