"""Cached images on the wire: what is asked for, and what is answered."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from innkeeper.guest_parts import DiskFormat
from innkeeper.messages import HostName, PoolName, Request, Sha256, View


class PrewarmSpec(Request):
    """An image that hosts are to have in their caches before a guest needs it.

    Args:
        image: a ``file://`` or ``http(s)://`` URL, or an absolute path on the hosts.
        sha256: digest of the image file; without one the bytes are taken on trust.
        image_format: the format the image claims to have.
        hosts: which hosts; None for all that take guests and have the pool.
        pool: the storage pool whose cache is meant.
    """

    image: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256 | None = None
    image_format: DiskFormat = "qcow2"
    hosts: Annotated[tuple[HostName, ...], Field(min_length=1, max_length=1000)] | None = None
    pool: PoolName = "local"


class CachedImageView(View):
    """One copy of an image in the cache of a host's pool.

    ``state`` is ``ready`` or ``rotten``; ``guests`` counts those whose root disk lies on it.
    """

    host: str
    pool: str
    sha256: str
    format: str
    state: str
    size_bytes: int = 0
    virtual_size_bytes: int = 0
    guests: int = 0
    source: str | None = None
    last_used_at: datetime
    verified_at: datetime | None = None
