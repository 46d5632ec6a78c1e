"""Which of a host's cached images other hosts may have."""

from collections.abc import Iterable
from pathlib import Path

from tasks.context import Pool
from virt.image_facts import read_facts
from virt.image_files import parse_name


def find_served(pools: Iterable[Pool], name: str) -> Path | None:
    """Return the file of a cached image by its name; None when no pool has a sound one.

    Args:
        pools: the host's.
        name: ``SHA256.FORMAT``, from anybody; no path is ever made of anything else.
    """
    parsed = parse_name(name)
    if parsed is None:
        return None
    for pool in pools:
        path = pool.images.path_for(*parsed)
        facts = read_facts(path)
        if facts is not None and path.is_file() and path.stat().st_size == facts.size_bytes:
            return path
    return None
