"""Which image cache is meant."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """The image cache of a storage pool of a host.

    Args:
        host: whose.
        pool: the pool.
        is_shared: whether other hosts see the same directory under the same pool's name.
    """

    host: str
    pool: str
    is_shared: bool
