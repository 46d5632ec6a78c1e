"""The digests of an image's bytes: the one it is known by, and the one some publishers give."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from innkeeper.errors import DigestMismatch

_CHUNK_BYTES = 1 << 20


class Digests:
    """SHA-256 of a stream, and SHA-512 where somebody wants it.

    Args:
        with_sha512: whether it is wanted; it costs more than the other.
    """

    def __init__(self, *, with_sha512: bool) -> None:
        self._sha256 = hashlib.sha256()
        self._sha512 = hashlib.sha512() if with_sha512 else None

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._sha256.update(chunk)
        if self._sha512 is not None:
            self._sha512.update(chunk)

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._sha256.hexdigest()

    @property
    def sha512(self) -> str | None:
        """SHA-512 of all bytes so far; None when it was not wanted."""
        return self._sha512.hexdigest() if self._sha512 is not None else None


def digest_file(path: Path, *, with_sha512: bool, check: Callable[[], None]) -> Digests:
    """Return the digests of a file.

    Args:
        path: the file.
        with_sha512: whether SHA-512 is wanted.
        check: called for each MiB; may raise to stop.
    """
    digests = Digests(with_sha512=with_sha512)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            check()
            digests.update(chunk)
    return digests


def require_digest(algorithm: str, *, shown: str, expected: str | None, actual: str | None) -> None:
    """Refuse bytes that are not the promised ones.

    Args:
        algorithm: ``sha256`` or ``sha512``.
        shown: the image's address as people may see it.
        expected: what was promised; None for nothing.
        actual: what they have.

    Raises:
        DigestMismatch: they differ.
    """
    if expected is not None and actual != expected:
        raise DigestMismatch(
            f"The image {shown} has the {algorithm.upper()} {actual}; promised was {expected}.",
            {"url": shown, "algorithm": algorithm, "expected": expected, "actual": actual},
        )
