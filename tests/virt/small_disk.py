"""A file system with little space, to be filled."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(path: Path, *, mib: float) -> Iterator[Path]:
    """Mount a tmpfs of a size at a path during the body."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={int(mib * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
