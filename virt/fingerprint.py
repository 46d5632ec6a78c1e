"""Whether two hosts have the same bytes under one path: a digest of samples of a file.

Hashing a base image of gigabytes takes seconds on either host. What is compared instead is its size
and blocks all over it, chosen by a seed that both hosts share and that differs each time. A file of
up to ``SAMPLES`` blocks is read whole.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 64 * 1024
SAMPLES = 64


@dataclass(frozen=True)
class Fingerprint:
    """What two files must agree in.

    Args:
        size_bytes: the file's length.
        sha256: of the sampled blocks.
    """

    size_bytes: int
    sha256: str


def find_fingerprint(path: Path, seed: str) -> Fingerprint | None:
    """Return a file's fingerprint; None when there is no such file.

    Args:
        path: the file.
        seed: decides which blocks are looked at.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            digest = hashlib.sha256()
            for block in _choose(size_bytes, seed):
                file.seek(block * BLOCK_BYTES)
                digest.update(file.read(BLOCK_BYTES))
    except FileNotFoundError:
        return None
    return Fingerprint(size_bytes, digest.hexdigest())


def _choose(size_bytes: int, seed: str) -> list[int]:
    blocks = -(-size_bytes // BLOCK_BYTES)
    if blocks <= SAMPLES:
        return list(range(blocks))
    # The first has the tables of most formats, the last what was written last.
    middle = random.Random(seed).sample(range(1, blocks - 1), SAMPLES - 2)  # noqa: S311
    return [0, *sorted(middle), blocks - 1]
