"""Every attack is refused by its own error, before anything opens what it points at."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper.errors import (
    FetchFailed,
    InnkeeperError,
    InvalidRequest,
    SourceRefused,
    UnsafeImage,
)
from tests.virt.image_attacks import ATTACKS, MIB, Attack, backing, data_file, vmdk_flat
from tests.virt.image_server import Server
from virt.images import ImageCache
from virt.inspect_image import inspect_file

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 64 * MIB


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    (tmp_path / "images").mkdir()
    return ImageCache(
        tmp_path / "cache",
        allowed_file_roots=(tmp_path / "images",),
        max_bytes=LIMIT_BYTES,
        attempts=2,
    )


def leftovers(cache: ImageCache) -> list[str]:
    return sorted(
        str(path.relative_to(cache.root))
        for path in cache.root.rglob("*")
        if path.is_file() and path.parent.name != ".locks"
    )


def plant_secret(tmp_path: Path) -> Path:
    secret = tmp_path / "secret"
    secret.write_bytes(b"TOP SECRET " * 100_000)
    return secret


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused(
    attack: Attack, cache: ImageCache, tmp_path: Path, server: Server
) -> None:
    image = tmp_path / "images" / "image"
    attack.make(image, plant_secret(tmp_path))
    # More behind it, so that a transfer that goes on would be seen to.
    if attack.stops_early and image.stat().st_size > 200_000:
        os.truncate(image, max(image.stat().st_size, 8 * MIB))
    server.files["/image"] = image.read_bytes()
    server.part_bytes = 4096
    server.pause_s = 0.002
    for address in (str(image), server.url("/image?signature=hush")):
        with pytest.raises(InnkeeperError) as raised:
            cache.ensure(address, None, attack.declared, max_virtual_size_bytes=LIMIT_BYTES)
        assert type(raised.value) is attack.error, raised.value
        assert raised.value.code == attack.error.code
        assert (
            raised.value.details.get("reason")
            or "actual" in raised.value.details
            or ("disk_size_bytes" in raised.value.details)
        )
        assert "hush" not in str(raised.value.to_wire())
        assert leftovers(cache) == []
        assert cache.list() == []
    if attack.stops_early:
        # What the server could send while the first piece was looked at is little more.
        assert server.sent_bytes <= 64 * 1024 + 8 * 4096


def test_every_attack_would_pass_if_it_were_harmless(cache: ImageCache, tmp_path: Path) -> None:
    """The control: the same maker without the harm is taken."""
    from tests.virt.image_attacks import plain

    for version in ("0.10", "1.1"):
        image = tmp_path / "images" / version
        plain(image, version=version)
        assert cache.ensure(str(image), None, "qcow2").virtual_size_bytes == 16 * MIB
    assert cache.ensure(str(plant_secret(tmp_path / "images")), None, "raw").was_fetched


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket", "device", "link", "dots"])
def test_a_path_that_is_no_image(kind: str, cache: ImageCache, tmp_path: Path) -> None:
    images, secret = tmp_path / "images", plant_secret(tmp_path)
    target = images / kind
    expected: type[InnkeeperError] = SourceRefused
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "directory":
        target.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(target))
    elif kind == "device":
        os.mknod(target, 0o600 | 0o020000, os.makedev(1, 5))
    elif kind == "link":
        target.symlink_to(secret)
        expected = InvalidRequest
    else:
        target, expected = images / ".." / "secret", InvalidRequest
    for address in (str(target), f"file://{target}"):
        with pytest.raises(InnkeeperError) as raised:
            cache.ensure(address, None, "raw")
        assert type(raised.value) is expected
        assert leftovers(cache) == []


@pytest.mark.parametrize(
    "address",
    [
        'json:{"driver":"file","filename":"/etc/passwd"}',
        "json:{}",
        "nbd://127.0.0.1/x",
        "ftp://127.0.0.1/x",
        "file://elsewhere/etc/passwd",
        "file:relative",
        "relative/path",
        "-o/etc/passwd",
        "http://[::1",
        "fat:/etc",
        "/etc/passwd\x00.qcow2",
        "http://",
        "http://127.0.0.1:99999/x",
        "http://exa mple/\r\nX: y",
    ],
)
def test_an_address_that_is_none(address: str, cache: ImageCache) -> None:
    with pytest.raises((InvalidRequest, FetchFailed)):
        cache.ensure(address, None, "raw")
    assert leftovers(cache) == []


def test_qemu_img_alone_refuses_what_reaches_outside(cache: ImageCache, tmp_path: Path) -> None:
    """The second judge stands by itself, should the first be fooled."""
    secret = plant_secret(tmp_path)
    for make in (backing, data_file):
        image = tmp_path / make.__name__
        make(image, secret)
        with pytest.raises(InnkeeperError) as raised:
            inspect_file(image, "qcow2", cage=cache.cage)
        assert isinstance(raised.value, UnsafeImage) or raised.value.code == "format_mismatch"


_FETCH = """
import sys
from pathlib import Path
from innkeeper.errors import ImageError
from virt.images import ImageCache
images, cache = Path(sys.argv[1]), Path(sys.argv[2])
store = ImageCache(cache, allowed_file_roots=(images,), max_bytes=1 << 26)
refused = 0
for image in sorted(images.iterdir()):
    for declared in ("qcow2", "raw"):
        try:
            store.ensure(str(image), None, declared)
        except ImageError:
            refused += 1
print(refused)
"""


def traced(argv: list[str], evidence: Path) -> str:
    """Run a program and return every file name that it or its children gave to the kernel."""
    calls = "trace=open,openat,openat2,open_by_handle_at,creat,stat,newfstatat,statx,readlink"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-s", "4096", "-e", calls, "-o", str(evidence), *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_planted_secret_is_opened_by_nobody(tmp_path: Path) -> None:
    secret = plant_secret(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for make in (backing, data_file, vmdk_flat):
        make(images / make.__name__, secret)
    evidence = tmp_path / "evidence"
    said = traced([sys.executable, "-c", _FETCH, str(images), str(tmp_path / "cache")], evidence)
    assert said.split() == ["6"]
    seen = evidence.read_text()
    # It was at work: our own reading of the images is there.
    assert str(images / "backing") in seen
    assert str(secret) not in seen
    # The second judge alone, on the two that qemu-img may be given.
    look = (
        "import sys\nfrom pathlib import Path\nfrom innkeeper.errors import InnkeeperError\n"
        "from virt.cage import get_cage\nfrom virt.inspect_image import inspect_file\n"
        "for name in sys.argv[1:]:\n"
        "    try: inspect_file(Path(name), 'qcow2', cage=get_cage())\n"
        "    except InnkeeperError as error: print(error.code)\n"
    )
    traced(
        [sys.executable, "-c", look, str(images / "backing"), str(images / "data_file")], evidence
    )
    seen = evidence.read_text()
    assert "qemu-img" in seen
    assert str(secret) not in seen


def test_the_evidence_would_show_it(tmp_path: Path) -> None:
    """The control: a qemu-img that is left to guess does open the secret, and the trace has it."""
    secret = plant_secret(tmp_path)
    for make in (backing, vmdk_flat):
        image, evidence = tmp_path / make.__name__, tmp_path / f"{make.__name__}.trace"
        make(image, secret)
        traced(["qemu-img", "convert", "-O", "raw", str(image), str(tmp_path / "out")], evidence)
        assert f'"{secret}"' in evidence.read_text()
        assert b"TOP SECRET" in (tmp_path / "out").read_bytes()
