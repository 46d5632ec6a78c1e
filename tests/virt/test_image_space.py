"""A disk that fills up at any byte of a fetch leaves a cache that can be used."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.errors import HostUnsuitable
from tests.virt.image_attacks import plain
from tests.virt.image_server import Server
from tests.virt.small_disk import small_disk
from virt import images
from virt.images import ImageCache

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def make_cache(root: Path) -> ImageCache:
    return ImageCache(root, allowed_file_roots=(), max_bytes=64 * MIB, attempts=2)


@pytest.mark.parametrize(
    "free_bytes", [0, 1, 4096, 8192, 64 * 1024, MIB, 3 * MIB, 3 * MIB + 200_000]
)
def test_no_space_left_at_a_byte(free_bytes: int, tmp_path: Path, server: Server) -> None:
    image = b"\0" + os.urandom(4 * MIB)
    digest = hashlib.sha256(image).hexdigest()
    server.files["/a"] = image
    with small_disk(tmp_path / "small", mib=16) as small:
        cache = make_cache(small)
        plain(tmp_path / "earlier", size="8M")
        earlier = (tmp_path / "earlier").read_bytes()
        server.files["/earlier"] = earlier
        kept = cache.ensure(server.url("/earlier"), None, "qcow2")
        ballast = small / "ballast"
        fill(ballast, free_bytes)
        with pytest.raises(HostUnsuitable) as raised:
            cache.ensure(server.url("/a"), digest, "raw")
        assert raised.value.details["reason"] == "ENOSPC"
        assert "another host" in raised.value.hint
        # The space it took is free again, what was there is whole, and it works once there is room.
        assert list((small / ".partial").iterdir()) == []
        assert [image.digest for image in cache.list()] == [kept.digest]
        assert kept.path.read_bytes() == earlier
        ballast.unlink()
        assert cache.ensure(server.url("/a"), digest, "raw").path.read_bytes() == image
        assert not [path for path in small.iterdir() if path.name.startswith(".a")]


def test_no_space_for_the_facts(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the image fits, and then not one file more."""
    image = b"\0" + os.urandom(MIB)
    digest = hashlib.sha256(image).hexdigest()
    server.files["/a"] = image
    inspect_file = images.inspect_file
    with small_disk(tmp_path / "small", mib=8) as small:
        cache = make_cache(small)
        ballast = small / "ballast"

        def fill_then_inspect(*arguments: Any, **named: Any) -> int:
            fill(ballast, 0)
            return inspect_file(*arguments, **named)

        monkeypatch.setattr(images, "inspect_file", fill_then_inspect)
        with pytest.raises(HostUnsuitable):
            cache.ensure(server.url("/a"), digest, "raw")
        assert [path.name for path in small.iterdir() if path.is_file()] == ["ballast"]
        assert list((small / ".partial").iterdir()) == []
        ballast.unlink()
        monkeypatch.undo()
        assert cache.ensure(server.url("/a"), digest, "raw").was_fetched


def fill(path: Path, free_bytes: int) -> None:
    """Take all space of a file system but for some bytes."""
    about = os.statvfs(path.parent)
    size_bytes = about.f_bavail * about.f_frsize - free_bytes
    with path.open("ab") as file:
        file.write(bytes(max(size_bytes - size_bytes % 4096, 0)))
    if free_bytes == 0:
        try:
            with path.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass
